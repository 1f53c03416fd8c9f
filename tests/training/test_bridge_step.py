"""Whole steps against a naive loop that knows no peft, no padding, no halves and no torch.optim.

The loop takes the rollouts' tokens from the step's record, runs a plain LlamaForCausalLM with
effective weights W_θ + (alpha/r)·B·A one sequence at a time, and writes mixing, clipping and AdamW
out by hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from tests.training.tiny import (
    ChanceTask,
    copy_of,
    disturb,
    float64_everywhere,
    make_policy,
    same_bits,
    save_tiny_llama,
    small_config,
    to_float64,
)
from workbench.config import RunConfig
from workbench.policy import Policy
from workbench.records import StepRecord
from workbench.training.trainer import Trainer

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tied"), tied=True)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("untied"), tied=False)


@pytest.fixture
def float64() -> Iterator[None]:
    with float64_everywhere():
        yield


# --- the naive loop -----------------------------------------------------------------------------


NEWLINE = 3 + 188 + 10
"""The template ends a prompt with byte 10; bytes 0 to 32 stand behind 188 printable ones."""


def encode(text: str) -> list[int]:
    """The pocket tokenizer, written out for printable ASCII: '!' is byte 33, the first letter."""
    return [3 + ord(c) - ord("!") for c in text]


def effective(base: Weights, w: Weights, scaling: float) -> Weights:
    """θ + (alpha/r)·B·A by plain parameter name."""
    merged = dict(base)
    for name, a in w.items():
        if name.endswith(".lora_A"):
            module = name.removesuffix(".lora_A")
            merged[f"{module}.weight"] = (
                base[f"{module}.weight"] + scaling * w[f"{module}.lora_B"] @ a
            )
    return merged


@dataclass
class Adam:
    """AdamW without weight decay (Loshchilov and Hutter 2019), one tensor at a time."""

    steps: int = 0
    m: Weights = field(default_factory=dict)
    v: Weights = field(default_factory=dict)

    def ascend(self, weights: Weights, direction: Weights, lr: float, max_norm: float) -> Weights:
        norm = math.sqrt(sum(float((g * g).sum()) for g in direction.values()))
        shrink = max_norm / norm if norm > max_norm else 1.0
        self.steps += 1
        moved = {}
        for name, value in weights.items():
            g = shrink * direction[name]
            self.m[name] = 0.9 * self.m.get(name, torch.zeros_like(g)) + 0.1 * g
            self.v[name] = 0.999 * self.v.get(name, torch.zeros_like(g)) + 0.001 * g * g
            m = self.m[name] / (1 - 0.9**self.steps)
            v = self.v[name] / (1 - 0.999**self.steps)
            moved[name] = value.detach() + lr * m / (v.sqrt() + 1e-8)
        return moved

    def copy(self) -> Adam:
        return Adam(self.steps, dict(self.m), dict(self.v))


class NaiveBridge:
    """θ, θ̂ and w as leaf tensors, and one step of algorithm.md's section 3 on them."""

    def __init__(self, policy: Policy, config: RunConfig, model: LlamaForCausalLM) -> None:
        self.config, self.model = config, model
        self.scaling = config.model.lora_alpha / config.model.lora_rank
        assert policy.reference is not None
        self.reference = copy_of(dict(policy.reference.named_parameters()))
        self.theta = copy_of(policy.base)
        self.theta_hat = copy_of(policy.baseline_base)
        self.w = copy_of(policy.coordinator)
        self.adam, self.adam_hat, self.adam_w = Adam(), Adam(), Adam()

    def logprobs(
        self, weights: Weights, prompt: list[int], completion: list[int], temperature: float
    ) -> Tensor:
        ids = torch.tensor([prompt + completion])
        logits = torch.func.functional_call(self.model, weights, (ids,)).logits[0]
        logp = (logits[len(prompt) - 1 : -1] / temperature).log_softmax(-1)
        return logp[torch.arange(len(completion)), torch.tensor(completion)]

    def rl_gradient(
        self, base: Weights, record: StepRecord, old: list[Tensor] | None
    ) -> tuple[Weights, Weights, list[Tensor], int]:
        """(over base, over w, log-probs of each rollout, clipped tokens)."""
        c, temperature = self.config.training, self.config.sampling.temperature
        base = {n: p.detach().requires_grad_() for n, p in base.items()}
        w = {n: p.detach().requires_grad_() for n, p in self.w.items()}
        weights = effective(base, w, self.scaling)
        total, n_tokens, n_clipped, found = torch.zeros(()), 0, 0, []
        for i, row in enumerate(record.rollouts):
            group = [
                r.reward
                for r in record.rollouts[i // c.group_size * c.group_size :][: c.group_size]
            ]
            advantage = (row.reward - fmean(group)) / (stdev(group) + 1e-4)
            prompt = [1, *encode(row.prompt), NEWLINE]
            logp = self.logprobs(weights, prompt, row.token_ids, temperature)
            with torch.no_grad():
                ref = self.logprobs(self.reference, prompt, row.token_ids, temperature)
            then = logp.detach() if old is None else old[i]
            for t in range(len(row.token_ids)):
                ratio = (logp[t] - then[t]).exp()
                inside = ratio.clamp(1 - c.clip_range, 1 + c.clip_range)
                plain, clipped = ratio * advantage, inside * advantage
                n_clipped += bool(clipped < plain)
                k3 = (ref[t] - logp[t]).exp() - (ref[t] - logp[t]) - 1
                total = total + (plain if plain < clipped else clipped) - c.kl_coef * k3
            n_tokens += len(row.token_ids)
            found.append(logp.detach())
        over_base, over_w = self.gradients(total / n_tokens, base, w)
        return over_base, over_w, found, n_clipped

    def sft_gradient(self, record: StepRecord) -> tuple[Weights, Weights]:
        base = {n: p.detach().requires_grad_() for n, p in self.theta.items()}
        w = {n: p.detach().requires_grad_() for n, p in self.w.items()}
        weights = effective(base, w, self.scaling)
        total, n_tokens = torch.zeros(()), 0
        for row in record.demonstrations:
            solution = [*encode(row.solution), 2]
            prompt = [1, *encode(row.prompt), NEWLINE]
            total = total + self.logprobs(weights, prompt, solution, 1.0).sum()
            n_tokens += len(solution)
        return self.gradients(total / n_tokens, base, w)

    @staticmethod
    def gradients(objective: Tensor, base: Weights, w: Weights) -> tuple[Weights, Weights]:
        values = torch.autograd.grad(objective, [*base.values(), *w.values()])
        n = len(base)
        return dict(zip(base, values[:n], strict=True)), dict(zip(w, values[n:], strict=True))

    def step(self, record: StepRecord) -> int:
        """Update all three; returns the number of tokens that the baseline's clip removed."""
        c = self.config.training
        rl, rl_w, old, _ = self.rl_gradient(self.theta, record, None)
        if c.baseline_mode == "reset":
            self.theta_hat = self.adam.copy().ascend(self.theta, rl, c.base_lr, c.max_grad_norm)
        hat, hat_w, _, clipped = self.rl_gradient(self.theta_hat, record, old)
        sft, sft_w = self.sft_gradient(record)
        λ, full = c.rl_weight, c.coordinator_objective == "gain"
        base = {n: (1 - λ) * sft[n] + λ * rl[n] for n in rl}
        coordinator = {
            n: (1 - λ) * sft_w[n] + λ * (rl_w[n] - (hat_w[n] if full else 0)) for n in rl_w
        }
        self.theta = self.adam.ascend(self.theta, base, c.base_lr, c.max_grad_norm)
        if c.baseline_mode == "persistent":
            self.theta_hat = self.adam_hat.ascend(self.theta_hat, hat, c.base_lr, c.max_grad_norm)
        if c.train_coordinator:
            self.w = self.adam_w.ascend(self.w, coordinator, c.coordinator_lr, c.max_grad_norm)
        return clipped


def assert_close(found: Weights, expected: Weights, before: Weights, what: str) -> None:
    """Equal to 1e-9 of the weights' size, and their change to 1e-6 of its size."""
    assert found.keys() == expected.keys()
    for name in found:
        a, b = found[name].detach(), expected[name]
        assert a.dtype == torch.float64
        assert float((a - b).abs().max()) <= 1e-9 * float(b.abs().max()), f"{what} {name}"
        change = (b - before[name]).norm()
        assert float((a - b).norm()) <= 1e-6 * float(change), f"change of {what} {name}"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "rl_weight": 0.8,
            "max_grad_norm": 1e-2,
            "coordinator_objective": "mixed",
            "micro_batch_tokens": 24,
        },
        {"baseline_mode": "reset"},
        {"train_coordinator": False, "alignment_every": 1, "token_views_every": 1},
    ],
    ids=["default", "clipped, mixed, in small batches", "reset baseline", "frozen w, watched"],
)
def test_two_steps_equal_the_naive_loop(
    tied: Path, untied: Path, float64: None, changes: dict[str, object]
) -> None:
    folder = untied if changes else tied
    config = small_config(folder, **changes)
    policy = make_policy(config)
    to_float64(policy)
    disturb(policy.coordinator, 0.2, seed=1)  # B ≠ 0: w matters
    disturb(policy.base, 0.05, seed=2)  # θ ≠ reference: the KL matters
    disturb(policy.baseline_base, 0.05, seed=3)  # θ̂ ≠ θ: the ratio is live
    plain = LlamaForCausalLM.from_pretrained(folder).double().eval()
    naive = NaiveBridge(policy, config, plain)
    trainer = Trainer(config, policy, ChanceTask())
    clipped, spread = 0, 0.0
    for number in (1, 2):
        before = copy_of(naive.theta), copy_of(naive.theta_hat), copy_of(naive.w)
        record = trainer.step(number)
        clipped += naive.step(record)
        assert_close(policy.base, naive.theta, before[0], "θ")
        assert_close(policy.baseline_base, naive.theta_hat, before[1], "θ̂")
        if config.training.train_coordinator:
            assert_close(policy.coordinator, naive.w, before[2], "w")
        else:
            assert same_bits(policy.coordinator, naive.w)
        n_tokens = sum(len(row.token_ids) for row in record.rollouts)
        spread += record.metrics["reward_std"]
        assert math.isfinite(record.metrics["loss/rl"])
        assert n_tokens > len(record.rollouts)
    assert spread > 0  # or there was nothing to learn from
    assert clipped > 0 or config.training.baseline_mode == "reset"


def test_metrics_of_a_step_equal_the_naive_loops(tied: Path, float64: None) -> None:
    config = small_config(tied)
    policy = make_policy(config)
    to_float64(policy)
    disturb(policy.coordinator, 0.2, seed=1)
    disturb(policy.baseline_base, 0.05, seed=3)
    naive = NaiveBridge(policy, config, LlamaForCausalLM.from_pretrained(tied).double().eval())
    record = Trainer(config, policy, ChanceTask()).step(1)
    rl, _, old, _ = naive.rl_gradient(naive.theta, record, None)
    hat, _, new, clipped = naive.rl_gradient(naive.theta_hat, record, old)
    sft, _ = naive.sft_gradient(record)

    def norm(g: Weights) -> float:
        return math.sqrt(sum(float((x * x).sum()) for x in g.values()))

    m = record.metrics
    n_tokens = sum(len(row.token_ids) for row in record.rollouts)
    assert m["grad_norm/rl"] == pytest.approx(norm(rl), rel=1e-9)
    assert m["grad_norm/sft"] == pytest.approx(norm(sft), rel=1e-9)
    assert m["baseline/grad_norm"] == pytest.approx(norm(hat), rel=1e-9)
    mixed = {n: 0.5 * (sft[n] + rl[n]) for n in rl}
    assert m["grad_norm"] == pytest.approx(norm(mixed), rel=1e-9)
    assert m["grad_norm/clipped"] == pytest.approx(min(1.0, norm(mixed)), rel=1e-9)
    assert m["clip_ratio/region_mean"] == 0
    assert m["baseline/clip_ratio"] == pytest.approx(clipped / n_tokens, rel=1e-12)
    for row, logp, baseline_logp in zip(record.rollouts, old, new, strict=True):
        assert row.logprob == pytest.approx(logp.tolist(), rel=1e-9)
        assert row.baseline_logprob == pytest.approx(baseline_logp.tolist(), rel=1e-9)
    losses = [row.loss * row.n_tokens for row in record.demonstrations]
    n_sft = sum(row.n_tokens for row in record.demonstrations)
    assert m["loss/sft"] == pytest.approx(sum(losses) / n_sft, rel=1e-9)
