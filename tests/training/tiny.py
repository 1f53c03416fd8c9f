"""A tiny random Llama, a task whose reward every policy earns by chance, and float64 throughout."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from workbench.config import RunConfig
from workbench.pocket.make import make_tokenizer
from workbench.policy import Policy
from workbench.records import StepRecord
from workbench.tasks.problem import Demonstration, Problem, Split
from workbench.training.trainer import Trainer


def save_tiny_llama(folder: Path, *, tied: bool = True, vocab_size: int | None = None) -> Path:
    """Write an untrained Llama with the pocket tokenizer to `folder`."""
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=vocab_size or len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        initializer_range=0.3,  # far from uniform, so that tokens and gradients differ
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class ChanceTask:
    """Six prompts of unequal lengths; a completion is right if its checksum is even."""

    def __init__(self, solutions: Sequence[str] = ("ab", "c", "defg", "hi", "jklmn")) -> None:
        self.train = [Problem(f"p{i}", "x" * (i + 1) + "?", "even") for i in range(6)]
        self.shown = [
            Demonstration(f"d{j}", "y" * (j + 2) + "?", text, "even", "clean")
            for j, text in enumerate(solutions)
        ]

    def problems(self, split: Split) -> Sequence[Problem]:
        return self.train if split == "train" else []

    def demonstrations(self) -> Sequence[Demonstration]:
        return self.shown

    def reward(self, completion: str, problem: Problem) -> float:
        return float(zlib.crc32(completion.encode()) % 2 == 0)

    def extract(self, completion: str) -> str | None:
        return completion[:1] or None


SMALL = {
    "device": "cpu",
    "lora_rank": 3,
    "lora_alpha": 6.0,
    "prompts_per_step": 3,
    "group_size": 3,
    "demonstrations_per_step": 3,
    "max_new_tokens": 5,
    "temperature": 0.8,
    "clip_range": 0.05,
    "kl_coef": 0.03,
    "base_lr": 1e-3,
    "coordinator_lr": 1e-2,
    "alignment_every": 0,
    "shared_gain_every": 0,
    "paired_gain_every": 0,
    "token_views_every": 0,
    "coordinator_every": 0,
    "evaluate_every": 0,
}


def small_config(model: Path, **changes: object) -> RunConfig:
    """A config for unit tests of a step: few short rollouts, no probes."""
    return RunConfig().with_changes(path=str(model), **{**SMALL, **changes})


def make_policy(config: RunConfig, *, baseline: bool = True, reference: bool = True) -> Policy:
    """A fresh policy of a config: B = 0 and θ̂ = θ."""
    return Policy(config.model, config.seed, baseline=baseline, reference=reference)


@torch.no_grad()
def disturb(parameters: dict[str, Tensor], by: float, seed: int) -> None:
    """Add normal noise of standard deviation `by`."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters.values():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter += by * noise.to(parameter.dtype)


def to_float64(policy: Policy) -> None:
    """Turn every weight into float64; the policy's Parameter objects stay the same."""
    for module in (policy.model, policy.baseline, policy.reference):
        if module is not None:
            module.double()


def copy_of(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Detached copies, by name."""
    return {name: p.detach().clone() for name, p in parameters.items()}


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two sets of tensors are equal to the last bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _norm_without_cast(self: LlamaRMSNorm | Qwen2RMSNorm, x: Tensor) -> Tensor:
    return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


@contextmanager
def float64_everywhere() -> Iterator[None]:
    """New float tensors are float64, and no RMS norm rounds to float32 inside any more."""
    before = torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch:
        for norm in (LlamaRMSNorm, Qwen2RMSNorm):
            patch.setattr(norm, "forward", _norm_without_cast)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def two_steps(config: RunConfig, double: bool = False) -> tuple[Policy, list[StepRecord]]:
    """A policy after steps 1 and 2, and what they recorded."""
    policy = make_policy(config)
    if double:
        to_float64(policy)
    trainer = Trainer(config, policy, ChanceTask())
    return policy, [trainer.step(1), trainer.step(2)]


def numbers(record: StepRecord) -> dict[str, float]:
    """The metrics that are the same wherever a step is made."""
    return {k: v for k, v in record.metrics.items() if not k.startswith("seconds/")}
