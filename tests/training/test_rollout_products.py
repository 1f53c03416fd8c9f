"""Each rollout's products, as a step records them, against one backward pass a rollout."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

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

KL = 0.3
TEMPERATURE = 0.8


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"), tied=request.param)


@pytest.fixture
def case(folder: Path) -> Iterator[tuple[RunConfig, Policy]]:
    with float64_everywhere():
        config = small_config(
            folder, kl_coef=KL, temperature=TEMPERATURE, rollout_alignment_every=1
        )
        policy = make_policy(config)
        to_float64(policy)
        disturb(policy.coordinator, 0.2, seed=1)
        disturb(policy.base, 0.05, seed=2)
        yield config, policy


def logprobs(policy: Policy, prompt: str, ids: list[int], temperature: float) -> Tensor:
    """log π of a completion's tokens, without padding."""
    prompt_ids = policy.encode_prompt(prompt)
    logits = policy.model(torch.tensor([prompt_ids + ids])).logits[0, len(prompt_ids) - 1 : -1]
    return (logits / temperature).log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)]


def gradient(value: Tensor, policy: Policy) -> Tensor:
    """∇_θ value as one long vector."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, [*policy.base.values()])])


def naive(policy: Policy, record: StepRecord) -> tuple[list[Tensor], Tensor]:
    """(g_i of each rollout, g^S) by one backward pass each.

    At ratio 1 a token's slope is A ∇log π − KL ∇k3, and ∇k3 = (1 − π_ref/π) ∇log π.
    """
    n_tokens = sum(len(row.token_ids) for row in record.rollouts)
    shares = []
    for row in record.rollouts:
        found = logprobs(policy, row.prompt, row.token_ids, TEMPERATURE)
        k3_slope = 1 - (torch.tensor(row.reference_logprob) - found.detach()).exp()
        shares.append(gradient(((row.advantage - KL * k3_slope) * found).sum() / n_tokens, policy))
    total = torch.zeros(())
    for demo in record.demonstrations:
        ids = policy.encode_completion(demo.solution)
        total = total + logprobs(policy, demo.prompt, ids, 1.0).sum()
    return shares, gradient(total / sum(d.n_tokens for d in record.demonstrations), policy)


@pytest.mark.parametrize("micro_batch_tokens", [2048, 24])
def test_products_equal_one_backward_pass_per_rollout(
    case: tuple[RunConfig, Policy], micro_batch_tokens: int
) -> None:
    config, policy = case
    before = copy_of(policy.base), copy_of(policy.coordinator)
    record = Trainer(
        config.with_changes(micro_batch_tokens=micro_batch_tokens), policy, ChanceTask()
    ).step(1)
    with torch.no_grad():
        for old, parameters in zip(before, (policy.base, policy.coordinator), strict=True):
            for name, value in old.items():
                parameters[name].copy_(value)
    shares, sft = naive(policy, record)
    rl = torch.stack(shares).sum(0)
    assert {row.reward for row in record.rollouts} == {0.0, 1.0}
    for row, g in zip(record.rollouts, shares, strict=True):
        assert row.rl_alignment == pytest.approx(float(g @ rl), rel=1e-7)
        assert row.sft_alignment == pytest.approx(float(g @ sft), rel=1e-7)
        assert row.grad_norm == pytest.approx(float(g.norm()), rel=1e-7)
        assert row.rl_cosine == pytest.approx(float(g @ rl / g.norm() / rl.norm()), rel=1e-7)


def test_measuring_changes_no_step_and_grpo_has_no_sft_product(
    case: tuple[RunConfig, Policy],
) -> None:
    config, policy = case
    grpo = config.with_changes(method="grpo", rollout_alignment_every=2)
    start = copy_of(policy.base)
    trainer = Trainer(grpo, policy, ChanceTask())
    measured = [trainer.step(n).rollouts[0] for n in (1, 2, 3)]
    assert [math.isnan(row.rl_alignment) for row in measured] == [False, False, True]
    assert [math.isnan(row.grad_norm) for row in measured] == [False, False, True]
    assert all(math.isnan(row.sft_alignment) for row in measured)
    after = copy_of(policy.base)
    with torch.no_grad():
        for name, value in start.items():
            policy.base[name].copy_(value)
    plain = Trainer(grpo.with_changes(rollout_alignment_every=0), policy, ChanceTask())
    assert all(math.isnan(plain.step(n).rollouts[0].rl_alignment) for n in (1, 2, 3))
    assert same_bits(policy.base, after)
