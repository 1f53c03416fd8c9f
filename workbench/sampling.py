"""Rollouts, with their Gumbel noise as an input.

Greedy decoding of `logits / temperature + gumbel` is an exact sample of the softmax. The noise is a
pure function of (seed, step, purpose, sequence, position, token), so the same key gives the same
text, and two policies on the same key part only where their distributions differ enough (common
random numbers). No generator, no global random state. [ours; Gumbel-max trick]
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
)


@dataclass(frozen=True)
class Noise:
    """The key of a family of noise streams; one stream a sequence."""

    seed: int
    step: int
    purpose: str

    def key(self) -> int:
        """A 63-bit number made of the three parts."""
        text = f"{self.seed}/{self.step}/{self.purpose}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1

    def at(self, sequences: Tensor, position: int, vocab_size: int) -> Tensor:
        """The noise of some streams at one position; see `gumbel`."""
        return gumbel(self, sequences, position, vocab_size)


class NoiseSource(Protocol):
    """What rollouts take their noise from."""

    def at(self, sequences: Tensor, position: int, vocab_size: int) -> Tensor:
        """Gumbel noise (N, V) of the streams `sequences` (N,) at one position."""


def _signed(value: int) -> int:
    """The unsigned 64-bit constant as the signed one torch wants."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # torch shifts signed numbers arithmetically


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014), on int64 with wrap-around."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def gumbel(noise: Noise, sequences: Tensor, position: int, vocab_size: int) -> Tensor:
    """Standard Gumbel noise for one position: float32 (N, V), on the device of `sequences`.

    sequences: int64 (N,), the index of each row's stream. Equal inputs give equal noise on every
    device and in every batch.
    """
    step = _signed(_GOLDEN * (position + 1) % (1 << 64))  # python integers do not wrap around
    row = _mix(_mix(sequences + noise.key()) + step)  # (N,)
    token = torch.arange(1, vocab_size + 1, device=sequences.device) * _GOLDEN  # (V,)
    bits = _shift_right(_mix(row[:, None] + token), 41)  # 23 random bits: + 0.5 stays exact
    uniform = (bits.to(torch.float32) + 0.5) * 2.0**-23  # inside (0, 1)
    return -torch.log(-torch.log(uniform))


@dataclass(frozen=True)
class Completions:
    """N sampled completions, in the order of the prompts."""

    prompt_ids: list[list[int]]
    token_ids: list[list[int]]
    """With the end-of-text token, where one was sampled."""
    logprob: list[list[float]]
    """log π of each token at sampling time, at the sampling temperature."""
    finished: list[bool]
    texts: list[str]


class _GumbelArgmax(LogitsProcessor):
    """Adds noise to the logits so that greedy decoding samples; keeps the log-probs."""

    def __init__(
        self, noise: NoiseSource | None, sequences: Tensor, n_prompt: int, temperature: float
    ):
        self.noise, self.sequences = noise, sequences
        self.n_prompt, self.temperature = n_prompt, temperature
        self.logprobs: list[Tensor] = []  # one (N,) a position

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        position = input_ids.shape[1] - self.n_prompt
        logits = scores.float() / self.temperature
        noisy = logits
        if self.noise is not None:
            noisy = logits + self.noise.at(self.sequences, position, logits.shape[1])
        chosen = noisy.argmax(-1, keepdim=True)
        log_normaliser = logits.logsumexp(-1, keepdim=True)
        self.logprobs.append((logits.gather(1, chosen) - log_normaliser)[:, 0])
        return noisy


@torch.no_grad()
def sample(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[Sequence[int]],
    *,
    noise: NoiseSource | None,
    sequences: Sequence[int],
    end_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    batch: int = 256,
) -> Completions:
    """Complete each prompt once; `noise=None` decodes greedily.

    sequences[i] is the noise stream of prompt i; end_ids are the tokens that end a completion.
    """
    assert len(prompt_ids) == len(sequences)
    device = next(model.parameters()).device
    result = Completions([list(p) for p in prompt_ids], [], [], [], [])
    for at in range(0, len(prompt_ids), batch):
        part = result.prompt_ids[at : at + batch]
        width = max(len(p) for p in part)
        pad = int(tokenizer.pad_token_id or 0)
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in part], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part], device=device)
        streams = torch.tensor(list(sequences[at : at + batch]), device=device)
        processor = _GumbelArgmax(noise, streams, width, temperature)
        output = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            generation_config=GenerationConfig(
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=pad,
                eos_token_id=list(end_ids),
            ),
            logits_processor=LogitsProcessorList([processor]),
        )
        tokens = output[:, width:].tolist()
        logprobs = torch.stack(processor.logprobs, dim=1).tolist()
        for row, row_logprobs in zip(tokens, logprobs, strict=True):
            stop = next((i for i, t in enumerate(row) if t in end_ids), None)
            end = len(row) if stop is None else stop + 1
            result.token_ids.append(row[:end])
            result.logprob.append(row_logprobs[:end])
            result.finished.append(stop is not None)
            text_ids = row[: end if stop is None else stop]
            result.texts.append(tokenizer.decode(text_ids, skip_special_tokens=True))
    return result


@dataclass(frozen=True)
class TokenBatch:
    """N sequences as tensors: prompts padded left, completions padded right.

    The completions begin at column `n_prompt` of every row.
    """

    input_ids: Tensor  # (N, T)
    attention_mask: Tensor  # (N, T)
    position_ids: Tensor  # (N, T)
    completion_ids: Tensor  # (N, C)
    completion_mask: Tensor  # (N, C), float32 0/1
    n_prompt: int

    @property
    def n_tokens(self) -> int:
        """Completion tokens in the batch."""
        return int(self.completion_mask.sum())

    def select(self, rows: Sequence[int]) -> TokenBatch:
        """Some of the sequences, in this order, with no more padding than they need."""
        index = torch.tensor(rows, device=self.input_ids.device)
        mask = self.attention_mask[index]
        used = mask.any(0).nonzero()
        first, last = int(used[0]), int(used[-1]) + 1
        n_completion = last - self.n_prompt
        return TokenBatch(
            self.input_ids[index, first:last],
            mask[:, first:last],
            self.position_ids[index, first:last],
            self.completion_ids[index, :n_completion],
            self.completion_mask[index, :n_completion],
            self.n_prompt - first,
        )

    def micro_batches(self, start: int, stop: int, max_tokens: int) -> list[list[int]]:
        """The rows start…stop in groups of like length, each of at most `max_tokens` with padding.

        A single row that is longer stands alone. Whole groups need less padding than the batch, so
        this saves time as well as memory.
        """
        prompts = self.attention_mask[:, : self.n_prompt].sum(1).tolist()
        completions = self.completion_mask.sum(1).int().tolist()
        groups: list[list[int]] = []
        widest = (0, 0)  # longest prompt and completion of the last group
        for row in sorted(range(start, stop), key=lambda r: -completions[r]):
            wider = (max(widest[0], prompts[row]), max(widest[1], completions[row]))
            if groups and (len(groups[-1]) + 1) * sum(wider) <= max_tokens:
                groups[-1].append(row)
                widest = wider
            else:
                groups.append([row])
                widest = (prompts[row], completions[row])
        return groups


def pack(
    prompt_ids: Sequence[Sequence[int]],
    token_ids: Sequence[Sequence[int]],
    pad_id: int,
    device: torch.device | str = "cpu",
) -> TokenBatch:
    """Make a TokenBatch of N prompts and their completions."""
    n_prompt = max(len(p) for p in prompt_ids)
    n_completion = max(len(c) for c in token_ids)
    ids, mask, completion_mask = [], [], []
    for p, c in zip(prompt_ids, token_ids, strict=True):
        left, right = n_prompt - len(p), n_completion - len(c)
        ids.append([pad_id] * left + list(p) + list(c) + [pad_id] * right)
        mask.append([0] * left + [1] * (len(p) + len(c)) + [0] * right)
        completion_mask.append([1.0] * len(c) + [0.0] * right)
    input_ids = torch.tensor(ids, device=device)
    attention_mask = torch.tensor(mask, device=device)
    return TokenBatch(
        input_ids,
        attention_mask,
        (attention_mask.cumsum(1) - 1).clamp(min=0),
        input_ids[:, n_prompt:],
        torch.tensor(completion_mask, device=device),
        n_prompt,
    )


def completion_logits(model: nn.Module, batch: TokenBatch, temperature: float = 1.0) -> Tensor:
    """Logits that predict each completion token, divided by the temperature: (N, C, V).

    In float32, or in the model's dtype where that is wider.
    """
    n_completion = batch.completion_ids.shape[1]
    logits = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        logits_to_keep=n_completion + 1,
        use_cache=False,
    ).logits
    at_least_float32 = torch.promote_types(logits.dtype, torch.float32)
    return logits[:, :-1].to(at_least_float32) / temperature


def token_logprobs(logits: Tensor, batch: TokenBatch) -> Tensor:
    """log π of each completion token, 0 at padding: (N, C)."""
    chosen = logits.gather(2, batch.completion_ids[:, :, None])[:, :, 0]
    return (chosen - logits.logsumexp(-1)) * batch.completion_mask


@torch.no_grad()
def batch_logprobs(
    model: nn.Module, batch: TokenBatch, temperature: float, max_tokens: int
) -> Tensor:
    """log π of each completion token, 0 at padding, (N, C), in micro-batches, without gradient."""
    found = torch.zeros_like(batch.completion_mask)
    for rows in batch.micro_batches(0, len(batch.input_ids), max_tokens):
        part = batch.select(rows)
        found[rows, : part.completion_ids.shape[1]] = token_logprobs(
            completion_logits(model, part, temperature), part
        ).to(found.dtype)
    return found


def token_entropy(logits: Tensor) -> Tensor:
    """Entropy of each next-token distribution, nats: (N, C)."""
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)
