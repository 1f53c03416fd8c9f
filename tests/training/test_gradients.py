"""Gradients against finite differences of the objectives' values, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.training.tiny import (
    ChanceTask,
    disturb,
    float64_everywhere,
    make_policy,
    save_tiny_llama,
    small_config,
    to_float64,
)
from workbench.config import RunConfig
from workbench.policy import Policy
from workbench.sampling import Completions, pack
from workbench.training.batches import RolloutBatch, draw, pack_demonstrations
from workbench.training.gradients import (
    NonFiniteError,
    RLPass,
    SFTPass,
    rl_pass,
    sft_pass,
    split_rows,
)
from workbench.training.methods import Sides
from workbench.training.objectives import group_advantages
from workbench.training.vectors import ParamVector

PROMPTS = [[1, 40], [1, 50, 60, 70], [1, 41, 42]]
STEP = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def case(folder: Path) -> Iterator[tuple[RunConfig, Policy]]:
    """A float64 policy away from its start, in a world where floats are float64."""
    with float64_everywhere():
        config = small_config(folder, clip_range=0.2, kl_coef=0.1)
        policy = make_policy(config)
        to_float64(policy)
        disturb(policy.coordinator, 0.2, seed=1)
        disturb(policy.base, 0.05, seed=2)
        disturb(policy.baseline_base, 0.05, seed=3)
        yield config, policy


def rollouts() -> RolloutBatch:
    """Three prompts × two made-up rollouts of unequal lengths, with made-up reference log-probs."""
    prompts = [p for p in PROMPTS for _ in range(2)]
    tokens = [[5, 6, 2], [7], [8, 9, 10, 11, 2], [12, 13], [14, 15, 16, 17, 18], [19, 20]]
    rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.5]])
    batch = pack(prompts, tokens, pad_id=0)
    generator = torch.Generator().manual_seed(4)
    reference = -8 * torch.rand(6, 5, generator=generator) * batch.completion_mask
    return RolloutBatch(
        ChanceTask().train[:3],
        Completions(prompts, tokens, [], [], []),
        rewards,
        rewards,
        group_advantages(rewards),
        batch,
        reference,
    )


def slope(
    value: Callable[[], float], weights: dict[str, Tensor], along: dict[str, Tensor]
) -> float:
    """d value / d h of weights + h · along, by a central difference."""

    @torch.no_grad()
    def shift(h: float) -> None:
        for name, parameter in weights.items():
            parameter += h * along[name]

    shift(STEP)
    up = value()
    shift(-2 * STEP)
    down = value()
    shift(STEP)
    return (up - down) / (2 * STEP)


def random_direction(weights: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.shape, generator=generator) for n, p in weights.items()}


def assert_slopes(
    value: Callable[[], float], gradient: Sides, base: dict[str, Tensor], w: dict[str, Tensor]
) -> None:
    for weights, found, seed in ((base, gradient.base, 5), (w, gradient.coordinator, 6)):
        along = random_direction(weights, seed)
        expected = slope(value, weights, along)
        inner = sum(float((found[n] * along[n]).sum()) for n in weights)
        assert inner == pytest.approx(expected, rel=1e-6)
        assert abs(expected) > 1e-4


@pytest.mark.parametrize("which", ["joint", "baseline"])
def test_rl_gradient_is_the_slope_of_the_objective(
    case: tuple[RunConfig, Policy], which: str
) -> None:
    config, policy = case
    batch = rollouts()
    base = policy.base if which == "joint" else policy.baseline_base
    module = policy.of("joint" if which == "joint" else "baseline")

    def run(old: Tensor | None, micro_batch_tokens: int = 2048) -> RLPass:
        training = config.with_changes(micro_batch_tokens=micro_batch_tokens).training
        return rl_pass("rl", module, base, policy.coordinator, batch, training, 0.8, old)

    now = run(None).logprobs_NC
    generator = torch.Generator().manual_seed(7)
    old = now + 0.4 * torch.randn(now.shape, generator=generator) * batch.tokens.completion_mask
    found = run(old)
    assert 0 < found.clip_ratio < 1
    assert_slopes(lambda: run(old).objective, found.gradient, base, policy.coordinator)
    # in many small batches: the same
    small = run(old, micro_batch_tokens=12)
    assert small.objective == pytest.approx(found.objective, rel=1e-12)
    assert small.kl == pytest.approx(found.kl, rel=1e-12)
    assert small.clip_ratio == pytest.approx(found.clip_ratio, rel=1e-12)
    for name, value in small.gradient.base.items():
        assert torch.allclose(value, found.gradient.base[name], rtol=1e-9, atol=1e-12)


def test_sft_gradient_is_the_slope_of_the_objective(case: tuple[RunConfig, Policy]) -> None:
    _, policy = case
    batch = pack_demonstrations(policy, ChanceTask().shown)

    def run() -> SFTPass:
        return sft_pass(policy, policy.coordinator, batch.tokens, None, 2048)[0]

    assert_slopes(lambda: run().objective, run().gradient, policy.base, policy.coordinator)


def test_a_block_is_its_own_prompts_share(case: tuple[RunConfig, Policy]) -> None:
    """Each of 3 prompts is a block; the last is the third alone, weighted by its tokens' share."""
    config, policy = case
    whole = rollouts()
    args = (policy.base, policy.coordinator)
    found = rl_pass("rl", policy.model, *args, whole, config.training, 1.0, None, keep_blocks=True)
    assert found.blocks is not None
    assert found.blocks.tokens == [4, 7, 7]
    rows = [4, 5]
    assert whole.reference_logprobs_NC is not None
    third = RolloutBatch(
        whole.problems_P[2:],
        whole.completions_N,
        whole.correct_PG[2:],
        whole.rewards_PG[2:],
        whole.advantages_PG[2:],
        pack([PROMPTS[2]] * 2, [whole.completions_N.token_ids[r] for r in rows], 0),
        whole.reference_logprobs_NC[4:],
    )
    alone = rl_pass("rl", policy.model, *args, third, config.training, 1.0, None)
    for side in ("base", "coordinator"):
        before = getattr(found.blocks.so_far[-1], side)
        for name, total in getattr(found.gradient, side).items():
            expected = total - 7 / 18 * getattr(alone.gradient, side)[name]
            assert before[name].dtype == torch.bfloat16
            torch.testing.assert_close(before[name].to(total), expected, rtol=2**-8, atol=1e-12)


def test_blocks_hold_all_rows_once_and_are_alike() -> None:
    for n_rows in range(1, 40):
        blocks = split_rows(n_rows, 5)
        assert [row for block in blocks for row in range(*block)] == list(range(n_rows))
        sizes = [stop - start for start, stop in blocks]
        assert len(sizes) == min(5, n_rows) and max(sizes) - min(sizes) <= 1


def test_one_demonstrations_share_is_the_gradient_of_its_tokens(
    case: tuple[RunConfig, Policy],
) -> None:
    """Per-demonstration inner products against one naive backward pass each."""
    _, policy = case
    demos = ChanceTask().shown
    batch = pack_demonstrations(policy, demos)
    direction = Sides(
        ParamVector(random_direction(policy.base, 8)),
        ParamVector(random_direction(policy.coordinator, 9)),
    )
    _, per = sft_pass(policy, policy.coordinator, batch.tokens, direction, 20)
    assert per is not None
    n_all = sum(len(policy.encode_completion(d.solution)) for d in demos)
    for j, demo in enumerate(demos):
        prompt, solution = (
            policy.encode_prompt(demo.prompt),
            policy.encode_completion(demo.solution),
        )
        logits = policy.model(torch.tensor([prompt + solution])).logits[0, len(prompt) - 1 : -1]
        picked = logits.log_softmax(-1)[torch.arange(len(solution)), torch.tensor(solution)]
        parameters = {**policy.base, **policy.coordinator}
        values = torch.autograd.grad(picked.sum() / n_all, parameters.values())
        share = dict(zip(parameters, values, strict=True))
        for inner, side in (
            (per.base_inner_D[j], direction.base),
            (per.coordinator_inner_D[j], direction.coordinator),
        ):
            expected = sum(float((share[n] * v).sum()) for n, v in side.items())
            assert float(inner) == pytest.approx(expected, rel=1e-9)
        norm = sum(float(share[n].square().sum()) for n in policy.base) ** 0.5
        assert float(per.base_norm_D[j]) == pytest.approx(norm, rel=1e-9)


def test_a_nan_weight_is_named_before_anything_is_applied(
    case: tuple[RunConfig, Policy],
) -> None:
    config, policy = case
    with torch.no_grad():
        policy.base["model.norm.weight"][0] = float("nan")
    with pytest.raises(NonFiniteError, match="rl objective") as caught:
        args = (policy.model, policy.base, policy.coordinator, rollouts())
        rl_pass("rl", *args, config.training, 1.0, None)
    assert (caught.value.phase, caught.value.tensor) == ("gradients", "rl objective")


def test_an_infinite_gradient_of_a_finite_objective_is_named(
    case: tuple[RunConfig, Policy],
) -> None:
    """The value is fine, the slope is not: a hook makes one parameter's gradient infinite."""
    config, policy = case
    name = "model.layers.1.mlp.up_proj.weight"
    handle = policy.base[name].register_hook(lambda g: g / 0)
    try:
        with pytest.raises(NonFiniteError, match=f"sft gradient of {name}"):
            tokens = pack_demonstrations(policy, ChanceTask().shown).tokens
            sft_pass(policy, policy.coordinator, tokens, None, 2048)
    finally:
        handle.remove()


def test_draws_go_through_all_items_before_repeating_and_depend_on_step_and_seed_only() -> None:
    items = list(range(10))
    epochs = [x for step in range(1, 11) for x in draw(items, 4, step, 0, "prompts")]
    for start in range(0, 40, 10):
        assert sorted(epochs[start : start + 10]) == items
    assert epochs[:10] != epochs[10:20]
    assert draw(items, 4, 7, 0, "prompts") == epochs[24:28]
    assert draw(items, 4, 7, 1, "prompts") != epochs[24:28]
    assert draw(items, 4, 7, 0, "demonstrations") != epochs[24:28]
    more_than_there_are = draw(items, 25, 1, 0, "prompts")
    assert sorted(more_than_there_are[:20]) == sorted(items * 2)


def test_an_item_set_aside_gives_its_place_to_another_and_the_rest_stay() -> None:
    items, aside = list(range(10)), {0, 3, 4}
    for step in range(1, 11):
        plain = draw(items, 4, step, 0, "prompts")
        found = draw(items, 4, step, 0, "prompts", aside)
        assert found == draw(items, 4, step, 0, "prompts", aside)
        assert all(b == a or a in aside for a, b in zip(plain, found, strict=True))
        assert not aside & set(found)
        if len(set(plain)) == 4:  # not across two epochs
            assert len(set(found)) == 4
    assert set(draw(items, 4, 1, 0, "prompts", set(range(9)))) == {9}
    given = [
        x for step in range(1, 501) for x in draw(items, 4, step, 0, "prompts", aside) if x == 1
    ]
    assert 200 < len(given) < 400  # 2000 places over seven items are 286 each; 200 of them its own
