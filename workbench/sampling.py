"""Rollouts, with their Gumbel noise as an input.

Greedy decoding of `logits / temperature + gumbel` is an exact sample of the softmax. The noise is a
pure function of (seed, step, purpose, sequence, position, token), so the same key gives the same
text, and two policies on the same key part only where their distributions differ enough (common
random numbers). No generator, no global random state. [ours; Gumbel-max trick]

Where an environment takes part (tasks/environment.py) each rollout is written in turns: it stops
where the environment has something to say, that is put behind it, and it goes on. A token's
position counts what was put in, so its noise does not depend on how many turns there were.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)

from workbench.config import ConfigError
from workbench.placement import casts_kept
from workbench.tasks.environment import ENVIRONMENT, POLICY, Environment
from workbench.turns import Row, TurnEnds


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

    def at(self, sequences: Tensor, position: int | Tensor, vocab_size: int) -> Tensor:
        """The noise of some streams, each at one position; see `gumbel`."""
        return gumbel(self, sequences, position, vocab_size)


class NoiseSource(Protocol):
    """What rollouts take their noise from."""

    def at(self, sequences: Tensor, position: int | Tensor, vocab_size: int) -> Tensor:
        """Gumbel noise (N, V) of the streams `sequences` (N,) at one position, or one each (N,)."""


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


def gumbel(noise: Noise, sequences: Tensor, position: int | Tensor, vocab_size: int) -> Tensor:
    """Standard Gumbel noise for one position: float32 (N, V), on the device of `sequences`.

    sequences: int64 (N,), the index of each row's stream. position: of all rows, or int64 (N,).
    Equal inputs give equal noise on every device and in every batch.
    """
    step = (torch.as_tensor(position, device=sequences.device) + 1) * _GOLDEN
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
    """log π of each token at sampling time, at the sampling temperature; 0 where another wrote."""
    finished: list[bool]
    texts: list[str]
    writers: list[list[str]] = field(default_factory=list)
    """Who wrote each token: POLICY, or who took part; empty: nobody could."""


class _GumbelArgmax(LogitsProcessor):
    """Adds noise to the logits so that greedy decoding samples; keeps the log-probs."""

    def __init__(
        self,
        noise: NoiseSource | None,
        sequences: Tensor,
        written: Tensor,
        n_prompt: int,
        temperature: float,
    ):
        self.noise, self.sequences, self.written = noise, sequences, written
        self.n_prompt, self.temperature = n_prompt, temperature
        self.logprobs: list[Tensor] = []  # one (N,) a position

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        positions = self.written + (input_ids.shape[1] - self.n_prompt)
        logits = scores.float() / self.temperature
        noisy = logits
        if self.noise is not None:
            noisy = logits + self.noise.at(self.sequences, positions, logits.shape[1])
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
    environments: Sequence[Environment] | None,
) -> Completions:
    """Complete each prompt once; `noise=None` decodes greedily.

    sequences[i] is the noise stream of prompt i; end_ids are the tokens that end a completion.
    environments[i] takes part in completion i (None: nobody does); what it puts in counts for
    `max_new_tokens`, and is cut off there. Raises ConfigError where a prompt leaves the model fewer
    learned positions than that.
    """
    _check_positions(model, max(map(len, prompt_ids), default=0) + max_new_tokens)
    who: Sequence[Environment | None] = environments or [None] * len(prompt_ids)
    rows = [Row(list(p), n, e) for p, n, e in zip(prompt_ids, sequences, who, strict=True)]
    for at in range(0, len(rows), batch):
        going = rows[at : at + batch]
        while going:
            _take_turns(model, tokenizer, going, noise, set(end_ids), max_new_tokens, temperature)
            going = [row for row in going if row.going]
    finished = [row.token_ids[-1] in end_ids for row in rows]
    shown = [
        row.token_ids[:-1] if ended else row.token_ids
        for row, ended in zip(rows, finished, strict=True)
    ]
    return Completions(
        [row.prompt_ids for row in rows],
        [row.token_ids for row in rows],
        [row.logprob for row in rows],
        finished,
        [tokenizer.decode(ids, skip_special_tokens=True) for ids in shown],
        [] if environments is None else [row.writers for row in rows],
    )


def _take_turns(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    noise: NoiseSource | None,
    end_ids: set[int],
    longest: int,
    temperature: float,
) -> None:
    """Let each row write until its turn ends, and put what is replied behind it."""
    device = next(model.parameters()).device
    seen = [row.prompt_ids + row.token_ids for row in rows]
    width = max(map(len, seen))
    pad = int(tokenizer.pad_token_id or 0)
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in seen], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in seen], device=device)
    streams = torch.tensor([row.stream for row in rows], device=device)
    written = torch.tensor([len(row.token_ids) for row in rows], device=device)
    processor = _GumbelArgmax(noise, streams, written, width, temperature)
    turns = TurnEnds(rows, tokenizer, list(end_ids), width, longest)
    with casts_kept(model):
        output = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            generation_config=GenerationConfig(
                max_new_tokens=max(turns.room),
                do_sample=False,
                pad_token_id=pad,
                eos_token_id=list(end_ids),
            ),
            logits_processor=LogitsProcessorList([processor]),
            stopping_criteria=StoppingCriteriaList([turns]),
        )
    tokens = output[:, width:].tolist()
    logprobs = torch.stack(processor.logprobs, dim=1).tolist()
    for i, row in enumerate(rows):
        n, reply = turns.lengths[i], turns.replies[i]
        row.token_ids += tokens[i][:n]
        row.logprob += logprobs[i][:n]
        row.writers += [POLICY] * n
        row.going = reply is not None
        if reply is not None:
            row.turns.append(turns.text(tokens[i][:n]))
            told = tokenizer.encode(reply.text, add_special_tokens=False) if reply.text else []
            told = [token for token in told if token not in end_ids][: turns.room[i] - n]
            row.token_ids += told
            row.logprob += [0.0] * len(told)
            row.writers += [reply.writer] * len(told)
            row.going = len(row.token_ids) < longest


@dataclass(frozen=True)
class TokenBatch:
    """N sequences as tensors: prompts padded left, completions padded right.

    The completions begin at column `n_prompt` of every row.
    """

    input_ids: Tensor  # (N, T)
    attention_mask: Tensor  # (N, T)
    position_ids: Tensor  # (N, T)
    completion_ids: Tensor  # (N, C)
    completion_mask: Tensor  # (N, C), float32: 1 at each token but the environment's
    n_prompt: int

    @property
    def n_tokens(self) -> int:
        """Completion tokens in the batch, those of an environment left out."""
        return int(self.completion_mask.sum())

    @property
    def lengths_N(self) -> list[int]:
        """Tokens of each completion, whoever wrote them."""
        lengths: list[int] = self.attention_mask[:, self.n_prompt :].sum(1).tolist()
        return lengths

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
        completions = self.lengths_N
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
    writers: Sequence[Sequence[str]] = (),
) -> TokenBatch:
    """Make a TokenBatch of N prompts and their completions.

    writers: who wrote each completion token; what ENVIRONMENT did is masked out. None: nobody else.
    """
    n_prompt = max(len(p) for p in prompt_ids)
    n_completion = max(len(c) for c in token_ids)
    ids, mask, completion_mask = [], [], []
    for p, c in zip(prompt_ids, token_ids, strict=True):
        left, right = n_prompt - len(p), n_completion - len(c)
        ids.append([pad_id] * left + list(p) + list(c) + [pad_id] * right)
        mask.append([0] * left + [1] * (len(p) + len(c)) + [0] * right)
        i = len(ids) - 1
        who = writers[i] if writers else [POLICY] * len(c)
        own = [float(writer != ENVIRONMENT) for writer, _ in zip(who, c, strict=True)]
        completion_mask.append(own + [0.0] * right)
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


def _check_positions(model: nn.Module, longest: int, ids: Tensor | None = None) -> None:
    """Raise ConfigError where a text is longer than the model has learned positions (GPT-2, OPT).

    torch says no more of it than 'index out of range', and on a GPU nothing works after that.
    longest: tokens, with padding where the positions' `ids` say more exactly.
    """
    most = getattr(model.config, "max_position_embeddings", None)
    if most is None or longest <= most:
        return
    tokens = model.get_input_embeddings()  # type: ignore[operator]
    if not any(isinstance(m, nn.Embedding) and m is not tokens for m in model.modules()):
        return  # rotary: goes on, ever worse
    if ids is not None:
        longest = int(ids.max()) + 1
    if longest > most:
        raise ConfigError(
            f"max_new_tokens: a prompt with its completion may take {longest:,} tokens, and this "
            f"model knows {most:,} positions; lower max_new_tokens, or leave long texts out with "
            f"max_prompt_tokens and max_solution_tokens"
        )


def completion_logits(model: nn.Module, batch: TokenBatch, temperature: float = 1.0) -> Tensor:
    """Logits that predict each completion token, divided by the temperature: (N, C, V).

    In float32, or in the model's dtype where that is wider. Raises ConfigError where a text is
    longer than the model has learned positions.
    """
    n_completion = batch.completion_ids.shape[1]
    _check_positions(model, batch.attention_mask.shape[1], batch.position_ids)
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
    """log π of each completion token, 0 at padding and where an environment wrote: (N, C)."""
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
