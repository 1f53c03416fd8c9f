"""Coordinator probes against dense matrices and against merged plain models."""

from __future__ import annotations

from math import isnan, nan

import pytest
import torch
from torch import Tensor, nn

from workbench.policy import Policy
from workbench.probes.coordinator import (
    coordinator_rows,
    delta_singular_values,
    draw_samples,
    effect,
    effective_rank,
    first_parting,
)

PROMPT = "12+7-30=?"


def unknown(prompt: str, completion: str) -> float:
    return nan


def length(prompt: str, completion: str) -> float:
    return float(len(completion))


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_equal_singular_values_count_as_many_directions(rank: int) -> None:
    for size in (1e-9, 1.0, 1e6):
        values = torch.tensor([size] * rank + [0.0] * 3)
        assert effective_rank(values) == pytest.approx(rank)


def test_effective_rank_of_two_directions() -> None:
    """p = 0.9 and 0.1: exp(−0.9 ln 0.9 − 0.1 ln 0.1) = 0.9^−0.9 · 0.1^−0.1."""
    assert effective_rank(torch.tensor([3.0, 1.0])) == pytest.approx(0.9**-0.9 * 0.1**-0.1)
    assert isnan(effective_rank(torch.zeros(4)))


@pytest.mark.parametrize("shape", [(40, 24), (5, 24), (24, 5), (3, 2)])  # also thinner than r
def test_singular_values_equal_the_dense_product(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(8, shape[1], generator=generator, dtype=torch.float64)
    b = torch.randn(shape[0], 8, generator=generator, dtype=torch.float64)
    dense = 0.5 * b @ a
    values = delta_singular_values(a, b, 0.5)
    expected = torch.linalg.svdvals(dense)
    count = min(len(expected), 8)
    torch.testing.assert_close(values[:count], expected[:count], rtol=1e-10, atol=0)
    torch.testing.assert_close(values.norm(), dense.norm(), rtol=1e-12, atol=0)


def test_rows_equal_the_dense_change_of_each_module(policy: Policy) -> None:
    rows = coordinator_rows(4, policy)
    merged, plain = dict(policy.merged().named_parameters()), policy.base
    assert len(rows) == 2 * 7  # q k v o gate up down of both layers
    for row in rows:
        name = f"model.{row.module}.weight"
        delta = (merged[name] - plain[name]).detach().double()
        assert row.layer == ".".join(row.module.split(".")[:2])
        assert row.delta_norm == pytest.approx(delta.norm().item(), rel=1e-4)
        assert row.weight_norm == pytest.approx(plain[name].norm().item(), rel=1e-5)
        assert row.ratio == pytest.approx(row.delta_norm / row.weight_norm)
        expected = torch.linalg.svdvals(delta)[:3]  # rank 3
        assert row.singular_values == pytest.approx(expected.tolist(), rel=1e-3)
        assert row.effective_rank == pytest.approx(effective_rank(expected), rel=1e-3)
        assert 1 < row.effective_rank < 3
        assert row.step == 4


def test_a_fresh_coordinator_changes_nothing(policy: Policy) -> None:
    for name, parameter in policy.coordinator.items():
        if name.endswith("lora_B"):
            parameter.data.zero_()
    assert all(row.ratio == 0 for row in coordinator_rows(1, policy))
    (found,) = effect(policy, PROMPT, max_new_tokens=12, reward=unknown)
    assert found.first_parting is None
    assert found.logprob_difference == pytest.approx([0.0] * len(found.other.token_ids))
    assert found.kl == pytest.approx([0.0] * len(found.other.token_ids))


def plain_logprobs(model: nn.Module, ids: list[int], n_prompt: int) -> Tensor:
    """(C, V) from a plain model, no padding, no batch."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    return logits[n_prompt - 1 : -1].double().log_softmax(-1)


def test_effect_equals_plain_models_without_peft(policy: Policy) -> None:
    found = effect(
        policy, PROMPT, scales=[1.0], rollouts=3, seed=5, max_new_tokens=16, reward=length
    )
    merged = policy.merged()
    off = policy.model.get_base_model()
    prompt = policy.encode_prompt(PROMPT)
    assert len(found) == 3
    assert any(one.first_parting is not None for one in found)
    for one in found:
        ids = prompt + one.other.token_ids
        on = plain_logprobs(merged, ids, len(prompt))
        with policy.coordinator_scale(0.0):
            without = plain_logprobs(off, ids, len(prompt))
        at = torch.arange(len(on)), torch.tensor(one.other.token_ids)
        assert one.logprob_difference == pytest.approx((on - without)[at].tolist(), abs=1e-5)
        kl = nn.functional.kl_div(without, on, log_target=True, reduction="none").sum(1)
        assert one.kl == pytest.approx(kl.tolist(), abs=1e-5)
        assert max(one.kl) > 1e-3
        assert one.other.logprob == pytest.approx(on[at].tolist(), abs=1e-4)
        assert (one.base.coordinator, one.other.coordinator) == (0.0, 1.0)
        assert one.other.reward == len(one.other.completion)
        parting = one.first_parting
        assert one.base.token_ids[:parting] == one.other.token_ids[:parting]


def test_effect_against_the_start_equals_plain_models(policy: Policy) -> None:
    found = effect(
        policy,
        PROMPT,
        scales=[0.0, 1.0],
        against="start",
        rollouts=3,
        max_new_tokens=16,
        reward=length,
    )
    start, on = policy.of("reference"), policy.merged()
    prompt = policy.encode_prompt(PROMPT)
    drawn = draw_samples(
        policy, [PROMPT], policy_name="reference", rollouts=3, max_new_tokens=16, reward=length
    )
    assert [one.base for one in found] == drawn * 2  # on the same noise at both scales
    assert any(one.first_parting is not None for one in found)
    for one in found[3:]:
        ids = prompt + one.other.token_ids
        now, then = (plain_logprobs(model, ids, len(prompt)) for model in (on, start))
        at = torch.arange(len(now)), torch.tensor(one.other.token_ids)
        assert one.logprob_difference == pytest.approx((now - then)[at].tolist(), abs=1e-5)
        kl = nn.functional.kl_div(then, now, log_target=True, reduction="none").sum(1)
        assert one.kl == pytest.approx(kl.tolist(), abs=1e-5)


def test_effect_goes_through_scales_in_order_and_restores_the_coordinator(policy: Policy) -> None:
    before = [layer.scaling["default"] for _, layer in policy.lora_layers()]
    found = effect(
        policy, PROMPT, scales=[0.5, -1.0, 0.0], rollouts=2, max_new_tokens=8, reward=unknown
    )
    assert [one.other.coordinator for one in found] == [0.5, 0.5, -1.0, -1.0, 0.0, 0.0]
    assert [one.other.sequence for one in found] == [0, 1] * 3
    assert all(one.first_parting is None and max(one.kl) == 0 for one in found[4:])
    assert [layer.scaling["default"] for _, layer in policy.lora_layers()] == before


def test_samples_are_coupled_by_seed_and_leave_the_global_state_alone(policy: Policy) -> None:
    state = torch.get_rng_state()

    def draw(**changes: object) -> list[list[int]]:
        settings = {"rollouts": 3, "max_new_tokens": 10, "reward": unknown, **changes}
        return [s.token_ids for s in draw_samples(policy, [PROMPT, "1+1=?"], **settings)]

    first = draw(seed=1)
    assert len(first) == 6
    assert draw(seed=1) == first
    assert draw(seed=2) != first
    assert draw(seed=1, coordinator=0.0) != first
    assert draw(seed=1, policy_name="baseline") != first
    assert draw(seed=1, policy_name="reference") != first
    greedy = draw(greedy=True)
    assert greedy[0] == greedy[1] == greedy[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_first_parting() -> None:
    assert first_parting([1, 2, 3], [1, 2, 3]) is None
    assert first_parting([1, 2, 3], [1, 4, 3]) == 1
    assert first_parting([1, 2], [1, 2, 3]) == 2
