"""Dose–response against plain merged models, and its intervals against their own promise."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan, sqrt

import numpy as np
import pytest
import torch

from workbench.policy import Policy
from workbench.probes.dose import dose_response, draw
from workbench.probes.paired import mean_error, paired_difference, t_quantile
from workbench.records import DoseRow
from workbench.sampling import Noise, sample
from workbench.tasks.problem import Demonstration, Problem, Split

PROBLEMS = [Problem(f"p{i}", f"{7 * i}+{i + 3}=?", "") for i in range(4)]
ROLLOUTS = 3
NOISE = Noise(5, 0, "dose")


class EvenTask:
    """A completion is right if the codes of its characters add up to an even number."""

    def problems(self, split: Split) -> Sequence[Problem]:
        return PROBLEMS

    def demonstrations(self) -> Sequence[Demonstration]:
        return []

    def reward(self, completion: str, problem: Problem) -> float:
        return float(sum(map(ord, completion)) % 2 == 0)

    def extract(self, completion: str) -> str | None:
        return None


TASK = EvenTask()


def curve(policy: Policy, scales: Sequence[float]) -> list[DoseRow]:
    return dose_response(
        policy,
        TASK,
        PROBLEMS,
        scales,
        rollouts=ROLLOUTS,
        noise=NOISE,
        max_new_tokens=8,
        temperature=0.9,
    )


@pytest.mark.parametrize(("dof", "expected"), [(1, 12.706), (2, 4.303), (10, 2.228), (96, 1.985)])
def test_quantiles_are_those_of_the_tables(dof: int, expected: float) -> None:
    assert t_quantile(dof) == pytest.approx(expected, abs=5e-4)


def test_difference_and_error_equal_a_loop_over_problems() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 5, 4, generator=generator, dtype=torch.float64).round()
    found = paired_difference(first, second)
    pairs = (first - second).numpy()
    assert found.difference == pytest.approx(pairs.mean())
    of_means = [np.std(row, ddof=1) / 2 for row in pairs]  # of each problem's mean, K = 4
    assert found.standard_error == pytest.approx(sqrt(sum(np.square(of_means))) / 5)
    alone = [np.std(row, ddof=1) / 2 for row in first.numpy()]
    assert mean_error(first) == pytest.approx(sqrt(sum(np.square(alone))) / 5)


def test_pairs_that_never_differ_leave_room_for_doubt() -> None:
    found = paired_difference(torch.ones(4, 4), torch.ones(4, 4))
    assert found.difference == found.standard_error == 0
    assert found.low == -found.high
    assert found.high > 0.1  # a difference in 3 of 100 pairs would most likely not have been seen


@pytest.mark.parametrize("shares", [(0.02, 0.0), (0.1, 0.05), (0.4, 0.05)])
def test_intervals_cover_the_truth_also_where_few_pairs_differ(
    shares: tuple[float, float],
) -> None:
    """Pairs are won with one probability and lost with another; the truth is their difference."""
    win, lose = shares
    rng = np.random.default_rng(0)
    covered = plain = 0
    for _ in range(500):
        u = rng.random((16, 4))
        won, lost = u < win, u > 1 - lose
        found = paired_difference(torch.from_numpy(won), torch.from_numpy(lost))
        covered += found.low <= win - lose <= found.high
        plain += abs(found.difference - (win - lose)) <= 1.96 * found.standard_error
    assert covered >= 0.935 * 500
    if shares == (0.02, 0.0):
        assert plain < 0.8 * 500  # what the two made-up pairs are for


def test_rewards_are_those_of_plain_models_on_the_same_noise(policy: Policy) -> None:
    def rewards(model: torch.nn.Module) -> np.ndarray:
        owners = [p for p in PROBLEMS for _ in range(ROLLOUTS)]
        done = sample(
            model,
            policy.tokenizer,
            [policy.encode_prompt(p.prompt) for p in owners],
            noise=NOISE,
            sequences=range(len(owners)),
            end_ids=policy.end_ids,
            max_new_tokens=8,
            temperature=0.9,
            environments=None,
        )
        return np.array([TASK.reward(text, PROBLEMS[0]) for text in done.texts])

    found = curve(policy, [0.0, 1.0, 2.0])
    start = rewards(policy.of("reference"))
    on = rewards(policy.merged())
    for parameter in policy.coordinator.values():  # B·A doubles if each factor grows by √2
        parameter.data *= sqrt(2)
    double = rewards(policy.merged())
    for parameter in policy.coordinator.values():
        parameter.data.zero_()
    off = rewards(policy.merged())
    for row, plain in zip(found, (off, on, double), strict=True):
        assert row.reward == plain.mean()
        assert row.difference == pytest.approx((plain - off).mean())
        assert row.start_difference == pytest.approx((plain - start).mean())
    assert len({tuple(r) for r in (on, double, off, start)}) == 4


def test_rows_compare_each_scale_with_off_and_with_the_start(policy: Policy) -> None:
    def at(scale: float, name: str = "joint") -> torch.Tensor:
        with policy.coordinator_scale(scale):
            return draw(
                policy,
                name,
                TASK,
                PROBLEMS,
                rollouts=ROLLOUTS,
                noise=NOISE,
                max_new_tokens=8,
                temperature=0.9,
            ).rewards_PK

    before = [layer.scaling["default"] for _, layer in policy.lora_layers()]
    rows = curve(policy, [2.0, 0.0, 1.0])
    assert [layer.scaling["default"] for _, layer in policy.lora_layers()] == before
    off, start = at(0.0), at(1.0, "reference")
    assert [row.scale for row in rows] == [2.0, 0.0, 1.0]
    for row in rows:
        here = at(row.scale)
        assert row.reward_error == mean_error(here)
        moved = paired_difference(here, start)
        assert (row.start_standard_error, row.start_low, row.start_high) == moved[1:]
        if row.scale:
            assert (row.standard_error, row.low, row.high) == paired_difference(here, off)[1:]
        assert (row.n_problems, row.n_rollouts) == (4, 3)
    itself = rows[1]
    assert itself.difference == itself.standard_error == itself.low == itself.high == 0
    assert itself.changed == 0 < rows[2].changed


def test_a_fresh_coordinator_has_no_effect_at_any_scale(policy: Policy) -> None:
    for name, parameter in policy.coordinator.items():
        if name.endswith("lora_B"):
            parameter.data.zero_()
    for row in curve(policy, [0.5, 2.0]):
        assert row.difference == row.changed == 0
        assert row.low < 0 < row.high


def test_without_a_starting_policy_there_is_nothing_to_compare_with(policy: Policy) -> None:
    policy.reference = None
    (row,) = curve(policy, [1.0])
    assert isnan(row.start_difference) and isnan(row.start_low)
    assert not isnan(row.difference)
