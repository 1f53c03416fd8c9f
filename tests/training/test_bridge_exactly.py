"""What holds of whole steps to the last bit: which part moves which, and methods that coincide."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.training.tiny import (
    ChanceTask,
    copy_of,
    disturb,
    make_policy,
    same_bits,
    save_tiny_llama,
    small_config,
)
from workbench.config import RunConfig
from workbench.policy import Policy
from workbench.training.methods import Directions, Gradients
from workbench.training.trainer import Trainer


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tied"), tied=True)


def prepared(config: RunConfig, *, baseline: bool = True) -> Policy:
    """A float32 policy away from its start; θ and w the same with and without a baseline."""
    policy = make_policy(config, baseline=baseline)
    disturb(policy.coordinator, 0.2, seed=1)
    disturb(policy.base, 0.05, seed=2)
    disturb(policy.baseline_base, 0.05, seed=3)
    return policy


def spy(trainer: Trainer) -> list[tuple[Gradients, Directions]]:
    """Note what the method mixes and what comes of it."""
    seen: list[tuple[Gradients, Directions]] = []
    mix = trainer.method.mix

    def noted(gradients: Gradients, config: object) -> Directions:
        directions = mix(gradients, config)  # type: ignore[arg-type]
        seen.append((gradients, directions))
        return directions

    trainer.method.mix = noted  # type: ignore[method-assign, assignment]
    return seen


@pytest.mark.parametrize("random_w", [False, True], ids=["B = 0", "random B"])
def test_at_step_0_the_gain_term_of_w_is_exactly_zero(tied: Path, random_w: bool) -> None:
    config = small_config(tied, rl_weight=1.0, alignment_every=1)
    policy = make_policy(config)
    if random_w:
        disturb(policy.coordinator, 0.2, seed=1)
    before = copy_of(policy.coordinator)
    trainer = Trainer(config, policy, ChanceTask())
    seen = spy(trainer)
    record = trainer.step(1)
    gradients, directions = seen[0]
    assert gradients.rl and gradients.baseline_rl and directions.coordinator
    assert gradients.rl.coordinator.norm() > 0  # there is something to cancel
    assert same_bits(gradients.rl.coordinator, gradients.baseline_rl.coordinator)
    assert same_bits(gradients.rl.base, gradients.baseline_rl.base)
    assert all(not value.any() for value in directions.coordinator.values())
    assert same_bits(policy.coordinator, before)  # λ = 1: the gain term is all there is
    assert record.metrics["alignment/gain_signal"] == 0
    trainer.step(2)  # at λ = 1 both copies follow the same path
    assert same_bits(policy.base, policy.baseline_base)
    assert same_bits(policy.coordinator, before)


def moved_by_one_step(config: RunConfig, task: ChanceTask | None = None) -> tuple[bool, ...]:
    """Whether θ, θ̂ and w are other than before."""
    policy = prepared(config)
    before = copy_of(policy.base), copy_of(policy.baseline_base), copy_of(policy.coordinator)
    Trainer(config, policy, task or ChanceTask()).step(1)
    after = policy.base, policy.baseline_base, policy.coordinator
    return tuple(not same_bits(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({}, (True, True, True)),
        ({"base_lr": 0.0}, (False, False, True)),
        ({"coordinator_lr": 0.0}, (True, True, False)),
        ({"train_coordinator": False}, (True, True, False)),
    ],
)
def test_each_part_moves_only_by_its_own_rate(
    tied: Path, changes: dict[str, object], moved: tuple[bool, ...]
) -> None:
    assert moved_by_one_step(small_config(tied, **changes)) == moved


def test_the_updates_are_simultaneous(tied: Path) -> None:
    """What w becomes does not depend on θ's rate, nor θ on w's."""
    policies = {}
    for base_lr, coordinator_lr in ((1e-2, 1e-2), (0.0, 1e-2), (1e-2, 0.0)):
        config = small_config(tied, base_lr=base_lr, coordinator_lr=coordinator_lr)
        policies[base_lr, coordinator_lr] = policy = prepared(config)
        Trainer(config, policy, ChanceTask()).step(1)
    assert same_bits(policies[1e-2, 1e-2].coordinator, policies[0.0, 1e-2].coordinator)
    assert same_bits(policies[1e-2, 1e-2].base, policies[1e-2, 0.0].base)
    assert same_bits(policies[1e-2, 1e-2].baseline_base, policies[1e-2, 0.0].baseline_base)


def test_demonstrations_never_reach_the_baseline_and_the_baseline_never_reaches_theta(
    tied: Path,
) -> None:
    config = small_config(tied)
    usual, other_demos, other_baseline = (prepared(config) for _ in range(3))
    disturb(other_baseline.baseline_base, 0.05, seed=9)
    Trainer(config, usual, ChanceTask()).step(1)
    Trainer(config, other_demos, ChanceTask(["zz", "q", "zzzzzzzzz"])).step(1)
    Trainer(config, other_baseline, ChanceTask()).step(1)
    assert same_bits(usual.baseline_base, other_demos.baseline_base)
    assert not same_bits(usual.base, other_demos.base)
    assert not same_bits(usual.coordinator, other_demos.coordinator)
    assert same_bits(usual.base, other_baseline.base)
    assert not same_bits(usual.coordinator, other_baseline.coordinator)


def test_more_demonstrations_do_not_dilute_the_rl_gradient(tied: Path) -> None:
    found = []
    for n in (2, 5):
        config = small_config(tied, demonstrations_per_step=n)
        trainer = Trainer(config, prepared(config), ChanceTask())
        seen = spy(trainer)
        trainer.step(1)
        assert seen[0][0].rl and seen[0][0].sft
        found.append(seen[0][0])
    assert same_bits(found[0].rl.base, found[1].rl.base)
    assert not same_bits(found[0].sft.base, found[1].sft.base)


# --- methods that coincide ----------------------------------------------------------------------


def run_three(tied: Path, **changes: object) -> Policy:
    config = small_config(tied, **changes)
    policy = prepared(config, baseline=config.method == "bridge")
    trainer = Trainer(config, policy, ChanceTask())
    for number in (1, 2, 3):
        trainer.step(number)
    return policy


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            {"method": "bridge", "rl_weight": 1.0, "train_coordinator": False},
            {"method": "grpo"},
        ),
        (
            {"method": "bridge", "rl_weight": 0.0, "train_coordinator": False},
            {"method": "sft"},
        ),
        ({"method": "naive_mix", "sft_weight": 0.0}, {"method": "grpo"}),
    ],
    ids=["bridge λ=1 is grpo", "bridge λ=0 is sft", "naive_mix μ=0 is grpo"],
)
def test_methods_that_coincide(
    tied: Path, one: dict[str, object], other: dict[str, object]
) -> None:
    first, second = run_three(tied, **one), run_three(tied, **other)
    untouched = prepared(small_config(tied))
    assert same_bits(first.base, second.base)
    assert not same_bits(first.base, untouched.base)
    assert same_bits(first.coordinator, untouched.coordinator)
    assert same_bits(second.coordinator, untouched.coordinator)


def test_naive_mix_at_1_is_bridge_at_one_half_with_half_the_gradient(tied: Path) -> None:
    seen = []
    for changes in ({"method": "naive_mix", "sft_weight": 1.0}, {"method": "bridge"}):
        config = small_config(tied, **changes)
        policy = prepared(config, baseline=config.method == "bridge")
        trainer = Trainer(config, policy, ChanceTask())
        noted = spy(trainer)
        trainer.step(1)
        seen.append(noted[0][1])
    naive, bridge = seen
    assert naive.base and bridge.base and naive.coordinator is None and naive.baseline is None
    for name, value in naive.base.items():
        assert torch.allclose(value, 2 * bridge.base[name], rtol=1e-5, atol=1e-9)


# --- probes -------------------------------------------------------------------------------------


def test_probes_change_nothing(tied: Path) -> None:
    """All probes at every step, or none: the same weights to the last bit."""
    every = {
        f"{name}_every": 1
        for name in ("alignment", "shared_gain", "paired_gain", "token_views", "coordinator")
    } | {"evaluate_every": 1, "paired_prompts": 2, "paired_rollouts": 2}
    watched, unwatched = run_three(tied, **every), run_three(tied)
    assert same_bits(watched.base, unwatched.base)
    assert same_bits(watched.baseline_base, unwatched.baseline_base)
    assert same_bits(watched.coordinator, unwatched.coordinator)
