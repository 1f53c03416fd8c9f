"""Each method's objectives against the paper's formula: float64, plain loops, a fixed batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

import pytest
import torch
from torch import Tensor

from tests.training.method_loops import (
    LONGEST,
    REWARDS,
    TOKENS,
    Found,
    Loop,
    N,
    batch_of,
    centred,
    config,
    grpo_value,
    shown,
    standard,
)
from tests.training.tiny import (
    disturb,
    float64_everywhere,
    make_policy,
    save_tiny_llama,
    small_config,
    to_float64,
)
from workbench.policy import Policy
from workbench.training.batches import Rollouts
from workbench.training.gradients import rl_pass
from workbench.training.methods import Gradients, Sides, make_method
from workbench.training.vectors import ParamVector


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def policy(folder: Path) -> Iterator[Policy]:
    with float64_everywhere():
        policy = make_policy(small_config(folder), baseline=False)
        to_float64(policy)
        disturb(policy.base, 0.05, seed=2)
        yield policy


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with float64_everywhere():
        yield


ALL = [0, 1, 2]


COSINE = 0.05 + 0.85 * (1 + math.cos(math.pi * 49 / 200)) / 2  # chord_mu's μ at step 50
MIXES: dict[str, tuple[float, float]] = {
    "sft": (0, 1),
    "grpo": (1, 0),
    "naive_mix": (1, 0.7),
    "luffy": (1, 1),
    "srft": (1, 1),
    "chord_mu": (1 - COSINE, COSINE),
    "chord_phi": (0.9, 0.1),
    "relift": (1, 0),
    "hpt": (1, 0.7),
    "superrl": (1, 1),
    "prefix_rft": (1, 1),
    "uft": (1, 1e-3),
    "actguide": (1, 0),
    "aipo": (1, 0),
    "bridge": (0.3, 0.7),
}


@pytest.mark.parametrize("name", MIXES)
def test_theta_follows_the_weighted_gradients_of_the_formula(
    folder: Path, policy: Policy, name: str
) -> None:
    c = config(folder, name, sft_weight=0.7, hpt_sft_weight=0.7, rl_weight=0.3)
    of_rl, of_sft, of_baseline = (_random_sides(policy, seed) for seed in (1, 2, 3))
    found = make_method(c).mix(Gradients(of_rl, of_sft, of_baseline, step=50), c)
    a, b = MIXES[name]
    assert found.base is not None and found.own_sft is None
    for n, value in found.base.items():
        assert torch.allclose(value, a * of_rl.base[n] + b * of_sft.base[n], rtol=1e-12)
    if name == "bridge":
        assert found.baseline is of_baseline.base and found.coordinator is not None
        for n, value in found.coordinator.items():
            gain = of_rl.coordinator[n] - of_baseline.coordinator[n]
            assert torch.allclose(value, 0.3 * gain + 0.7 * of_sft.coordinator[n], rtol=1e-12)
    else:
        assert found.baseline is None and found.coordinator is None


def test_without_the_gain_objective_the_coordinator_follows_the_mixed_gradient(
    folder: Path, policy: Policy
) -> None:
    c = config(folder, "bridge", rl_weight=0.3, coordinator_objective="mixed")
    of_rl, of_sft, of_baseline = (_random_sides(policy, seed) for seed in (1, 2, 3))
    found = make_method(c).mix(Gradients(of_rl, of_sft, of_baseline), c)
    assert found.coordinator is not None
    for n, value in found.coordinator.items():
        mixed = 0.3 * of_rl.coordinator[n] + 0.7 * of_sft.coordinator[n]
        assert torch.allclose(value, mixed, rtol=1e-12)


def _random_sides(policy: Policy, seed: int) -> Sides:
    generator = torch.Generator().manual_seed(seed)

    def vector(parameters: dict[str, torch.nn.Parameter]) -> ParamVector:
        return ParamVector(
            (n, torch.randn(p.shape, generator=generator)) for n, p in parameters.items()
        )

    return Sides(vector(policy.base), vector(policy.coordinator))


def test_sft_is_the_mean_over_all_tokens_of_the_demonstrations(
    folder: Path, policy: Policy
) -> None:
    loop = Loop(policy)
    logps = [v for j in ALL for v in loop.logps(*loop.demonstration(j))]
    for name in ("sft", "naive_mix", "chord_mu", "cold_start", "bridge"):
        found = Found(policy, config(folder, name)).sft()
        assert found.objective == pytest.approx(fmean(logps), rel=1e-9), name


@torch.no_grad()
def test_rl_losses(folder: Path, policy: Policy) -> None:
    loop = Loop(policy)
    solved = [0, 2]
    n_solved = sum(len(TOKENS[3 * p + g]) for p in solved for g in range(3))
    sequences = sum(standard(p, g) - 0.1 * fmean(loop.k3(3 * p + g)) for p in ALL for g in range(3))
    expected = {
        "grpo": grpo_value(loop, standard, ALL, 0.1) / N,
        "dr_grpo": grpo_value(loop, centred, ALL, 0.1) / (9 * LONGEST),
        "dapo": grpo_value(loop, standard, solved, 0.0) / n_solved,
        "gspo": sequences / 9,
    }
    for rl_loss, value in expected.items():
        with torch.enable_grad():
            found = Found(policy, config(folder, "grpo", rl_loss=rl_loss)).rl()
        assert found.objective == pytest.approx(value, rel=1e-9), rl_loss


def test_the_ratio_is_clipped_as_each_loss_says(folder: Path, policy: Policy) -> None:
    """With the behaviour's log-probs 0.25 lower or higher, ρ = e^±0.25 everywhere."""
    standard_A = [standard(p, g) for p in ALL for g in range(3)]
    for rl_loss, low, high in (("grpo", 0.8, 1.2), ("dapo", 0.8, 1.28), ("gspo", 0.9997, 1.0004)):
        c = config(folder, "grpo", rl_loss=rl_loss, clip_range=0.2)
        c = c.with_changes(kl_coef=0.0)
        f = Found(policy, c)
        now = f.rl().logprobs_NC
        for shift in (0.25, -0.25, 0.22):
            ratio = math.exp(shift)
            args = ("rl", policy.model, policy.base, {}, f.batch, c.training, 1.0, now - shift)
            found = rl_pass(*args)
            inside = min(max(ratio, low), high)
            each = [min(ratio * a, inside * a) for a in standard_A]
            weights = [1.0 if rl_loss == "gspo" else len(t) for t in TOKENS]
            total = sum(v * w for v, w in zip(each, weights, strict=True))
            n_solved = sum(len(TOKENS[3 * p + g]) for p in (0, 2) for g in range(3))
            divisor = {"gspo": 9, "grpo": N, "dapo": n_solved}[rl_loss]
            assert found.objective == pytest.approx(total / divisor, rel=1e-9), (rl_loss, shift)


def test_luffy(folder: Path, policy: Policy) -> None:
    c = config(folder, "luffy", luffy_entropy=0.02)
    loop, f = Loop(policy), Found(policy, c)
    demo_rewards = [1.0, 0.0, 1.0]
    own = shaped = 0.0
    for p in ALL:
        mean = fmean([*REWARDS[p], demo_rewards[p]])
        for g in range(3):
            for h in loop.entropies(*loop.rollout(3 * p + g)):
                own += REWARDS[p][g] - mean + 0.02 * h
        for logp in loop.logps(*loop.demonstration(p)):
            prob = math.exp(logp)
            shaped += prob / (prob + 0.1) * (demo_rewards[p] - mean)
    divisor = 12 * LONGEST
    assert f.rl().objective == pytest.approx(own / divisor, rel=1e-9)
    assert f.sft().objective == pytest.approx(shaped / divisor, rel=1e-9)


def test_luffy_without_demonstrations_is_mean_only_grpo_without_clip(
    folder: Path, policy: Policy
) -> None:
    c = config(folder, "luffy", luffy_entropy=0.0, clip_range=0.01)
    method = make_method(c)
    batch = method.judge(replace(batch_of(policy), shown_rewards_P=None), c)
    now = Found(policy, c).rl().logprobs_NC
    found = rl_pass(
        "rl", policy.model, policy.base, {}, batch, c.training, 1.0, now - 0.5,
        objective_of=partial(method.rl_terms, c=c),
    )  # fmt: skip
    total = sum(
        math.exp(0.5) * centred(p, g) * len(TOKENS[3 * p + g]) for p in ALL for g in range(3)
    )
    assert found.objective == pytest.approx(total / (9 * LONGEST), rel=1e-9)


def test_srft(folder: Path, policy: Policy) -> None:
    loop, f = Loop(policy), Found(policy, config(folder, "srft"))
    demo_rewards = [1.0, 0.0, 1.0]
    own = 0.0
    for i in range(9):
        logps = loop.logps(*loop.rollout(i))
        h = fmean(loop.entropies(*loop.rollout(i)))
        own += (0.1 * math.exp(h) if REWARDS[i // 3][i % 3] else -1.0) * sum(logps)
    demos, n_demo = 0.0, 0
    for p in ALL:
        group = [*REWARDS[p], demo_rewards[p]]
        advantage = (demo_rewards[p] - fmean(group)) / (stdev(group) + 1e-4)
        h = fmean(loop.entropies(*loop.demonstration(p)))
        for logp in loop.logps(*loop.demonstration(p)):
            demos += 0.5 * math.exp(-h) * logp + advantage * math.exp(logp)
            n_demo += 1
    assert f.rl().objective == pytest.approx(own / N, rel=1e-9)
    assert f.sft().objective == pytest.approx(demos / n_demo, rel=1e-9)


def test_chord_phi_weights_each_token_by_p_times_1_minus_p(folder: Path, policy: Policy) -> None:
    loop, f = Loop(policy), Found(policy, config(folder, "chord_phi"))
    logps = [v for j in ALL for v in loop.logps(*loop.demonstration(j))]
    value = fmean(math.exp(v) * (1 - math.exp(v)) * v for v in logps)
    assert f.sft().objective == pytest.approx(value, rel=1e-9)
    assert f.rl().objective == pytest.approx(grpo_value(loop, standard, ALL, 0.1) / N, rel=1e-9)


@pytest.mark.parametrize(("gate", "solved"), [(0.0, [0, 2]), (1.0, []), (0.5, [0, 2])])
def test_hpt(folder: Path, policy: Policy, gate: float, solved: list[int]) -> None:
    loop, f = Loop(policy), Found(policy, config(folder, "hpt", hpt_gate=gate))
    wanted = [p for p in ALL if p not in solved]
    n_kept = max(1, 3 * len(solved))
    value = grpo_value(loop, centred, solved, 0.1) / (n_kept * LONGEST)
    assert f.rl().objective == pytest.approx(value, rel=1e-9, abs=1e-15)
    n = sum(len(loop.demonstration(j)[1]) for j in wanted)
    assert f.sft().objective == pytest.approx(-sum(map(loop.nll, wanted)) / n, rel=1e-9)


def test_superrl(folder: Path, policy: Policy) -> None:
    loop, f = Loop(policy), Found(policy, config(folder, "superrl"))
    n = sum(len(TOKENS[3 * p + g]) for p in (0, 2) for g in range(3))
    value = grpo_value(loop, standard, [0, 2], 0.1) / n
    assert f.rl().objective == pytest.approx(value, rel=1e-9)
    one = len(loop.demonstration(1)[1])
    assert f.sft().objective == pytest.approx(-loop.nll(1) / one, rel=1e-9)


def test_superrl_on_solved_groups_is_the_policy_gradient(folder: Path, policy: Policy) -> None:
    c = config(folder, "superrl")
    method, batch = make_method(c), batch_of(policy)
    rewards = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    batch = replace(batch, rewards_PG=rewards)
    judged = method.judge(batch, c)
    assert method.learn_from(policy, shown(), judged, 1, c) is None
    args = (policy.model, policy.base, {})
    plain = make_method(config(folder, "grpo"))
    a = rl_pass("rl", *args, judged, c.training, 1.0, None)
    b = rl_pass("rl", *args, plain.judge(batch, c), c.training, 1.0, None)
    assert all(torch.equal(a.gradient.base[n], v) for n, v in b.gradient.base.items())


def test_prefix_rft(folder: Path, policy: Policy) -> None:
    """The last rollout of each group goes on from 4, 0 and 2 tokens; 2, 0 and 1 are learned."""
    loop = Loop(policy)
    prefixes = [loop.demonstration(0)[1][:4], [], loop.demonstration(2)[1][:2]]
    given = [ids for prefix in prefixes for ids in ([], [], prefix)]
    f = Found(
        policy,
        config(folder, "prefix_rft", prefix_entropy_share=0.5),
        rollouts=Rollouts(given, [["demonstration"] * len(ids) for ids in given]),
    )
    n = N + 2 + 1
    prefix_value = 2 * standard(0, 2) + 1 * standard(2, 2)  # ρ = 1
    assert f.sft().objective == pytest.approx(prefix_value / n, rel=1e-9)
    expected = 0.0
    for i, (extra, tokens) in enumerate(zip(given, TOKENS, strict=True)):
        prompt = [*loop.rollout(i)[0], *extra]
        now, ref = loop.logps(prompt, tokens), loop.logps(prompt, tokens, policy.reference)
        for a, b in zip(now, ref, strict=True):
            expected += standard(i // 3, i % 3) - 0.1 * (math.exp(b - a) - (b - a) - 1)
    assert f.rl().objective == pytest.approx(expected / n, rel=1e-9)
    # which tokens: those of highest entropy, so the gradient is that of their log-probs alone
    gradient = torch.zeros(())
    for j, count in ((0, 2), (2, 1)):
        prompt = loop.demonstration(j)[0]
        rows = loop.distributions(prompt, prefixes[j])
        entropy = loop.entropies(prompt, prefixes[j])
        order = sorted(range(len(entropy)), key=lambda t: -entropy[t])
        for t in order[:count]:
            gradient = gradient + standard(j, 2) * rows[t, prefixes[j][t]] / n
    values = torch.autograd.grad(gradient, list(policy.base.values()))
    for value, (name, found) in zip(values, f.sft().gradient.base.items(), strict=True):
        assert torch.allclose(found, value, rtol=1e-8, atol=1e-12), name


def test_uft_learns_the_hints(folder: Path, policy: Policy) -> None:
    loop = Loop(policy)
    hints = [loop.demonstration(0)[1][:3], [], loop.demonstration(2)[1][:3]]
    f = Found(
        policy,
        config(folder, "uft"),
        rollouts=Rollouts([h for h in hints for _ in range(3)]),
    )
    logps = [v for j in (0, 2) for v in loop.logps(loop.demonstration(j)[0], hints[j])]
    assert f.sft().objective == pytest.approx(fmean(logps), rel=1e-9)


def test_actguide_weighs_guided_text_by_the_unguided_prompt(folder: Path, policy: Policy) -> None:
    """Group 1 was guided: behaviour probabilities of its own, clip 0.2, dual clip 3."""
    loop = Loop(policy)
    c = config(folder, "actguide", clip_range=0.2)
    rewards = [REWARDS[0], [1.0, 0.0, 0.0], REWARDS[2]]
    behaviour = [[math.nan] * len(t) for t in TOKENS]
    for i, shift in ((3, 0.5), (4, 2.0), (5, -0.5)):  # ρ = e^shift
        behaviour[i] = [v - shift for v in loop.logps(*loop.rollout(i))]
    method = make_method(c)
    batch = replace(
        batch_of(policy, Rollouts(behaviour=behaviour, plan_length=[math.nan] * 9)),
        rewards_PG=torch.tensor(rewards),
    )
    batch = method.judge(batch, c)
    assert batch.own_P == [0, 2]
    expected = 0.0
    for i, tokens in enumerate(TOKENS):
        group = rewards[i // 3]
        a = (group[i % 3] - fmean(group)) / (stdev(group) + 1e-4)
        ratio = math.exp({3: 0.5, 4: 2.0, 5: -0.5}.get(i, 0.0))
        value = min(ratio * a, min(max(ratio, 0.8), 1.2) * a)
        if a < 0:
            value = max(value, 3 * a)
        expected += value * len(tokens) - 0.1 * sum(loop.k3(i))
    found = rl_pass(
        "rl", policy.model, policy.base, {}, batch, c.training, 1.0, None,
        objective_of=partial(method.rl_terms, c=c),
    )  # fmt: skip
    assert found.objective == pytest.approx(expected / N, rel=1e-9)


SLOPES: dict[str, dict[str, object]] = {
    "grpo": {},
    "dr_grpo": {"method": "grpo", "rl_loss": "dr_grpo"},
    "dapo": {"method": "grpo", "rl_loss": "dapo"},
    "gspo": {"method": "grpo", "rl_loss": "gspo"},
    **{name: {} for name in ("luffy", "hpt", "superrl", "prefix_rft", "uft", "actguide")},
}


@pytest.mark.parametrize("name", SLOPES)
def test_rl_gradients_are_slopes(folder: Path, policy: Policy, name: str) -> None:
    """Of the surrogate with the log-probs of now held as those of the past: its slope is g^R."""
    f = Found(
        policy, config(folder, **{"method": name, **SLOPES[name]}), rollouts=_given(policy, name)
    )
    line = Line(policy)
    old = f.rl().logprobs_NC

    def surrogate() -> float:
        return rl_pass(
            "rl", policy.model, policy.base, {}, f.batch, f.c.training, 1.0, old,
            objective_of=partial(f.method.rl_terms, c=f.c),
        ).objective  # fmt: skip

    gradient = f.rl().gradient.base
    assert abs(line.inner(gradient)) > 1e-6
    assert line.inner(gradient) == pytest.approx(line.slope(surrogate), rel=1e-5)


def test_srfts_rl_gradient_is_a_slope(folder: Path, policy: Policy) -> None:
    """Its weights of right rollouts, under a stop-gradient, are taken once by the loop."""
    loop, line = Loop(policy), Line(policy)
    f = Found(policy, config(folder, "srft"))
    right = [REWARDS[i // 3][i % 3] > 0 for i in range(9)]
    weight = [
        0.1 * math.exp(fmean(loop.entropies(*loop.rollout(i)))) if right[i] else -1.0
        for i in range(9)
    ]

    def value() -> float:
        return sum(weight[i] * sum(loop.logps(*loop.rollout(i))) for i in range(9)) / N

    assert line.inner(f.rl().gradient.base) == pytest.approx(line.slope(value), rel=1e-5)


@pytest.mark.parametrize(
    "name", ["sft", "luffy", "srft", "chord_phi", "hpt", "superrl", "prefix_rft", "uft"]
)
def test_sft_gradients_are_slopes(folder: Path, policy: Policy, name: str) -> None:
    """Weights under a stop-gradient are held at their value by the loop."""
    line = Line(policy)
    f = Found(policy, config(folder, name), rollouts=_given(policy, name))
    stops = name in ("srft", "chord_phi", "prefix_rft")
    value = _stopped_weights(f, Loop(policy)) if stops else lambda: f.sft().objective
    gradient = f.sft().gradient.base
    assert abs(line.inner(gradient)) > 1e-6
    assert line.inner(gradient) == pytest.approx(line.slope(value), rel=1e-5)


def _given(policy: Policy, name: str) -> Rollouts | None:
    """The first group begins behind the first demonstration's first tokens, where a method can."""
    if name not in ("prefix_rft", "uft"):
        return None
    given = [Loop(policy).demonstration(0)[1][:3]] * 3 + [[]] * 6
    return Rollouts(given, [["demonstration"] * len(ids) for ids in given])


class Line:
    """A random direction in the weights, and the slope of a value along it."""

    def __init__(self, policy: Policy) -> None:
        generator = torch.Generator().manual_seed(5)
        self.base = policy.base
        self.along = {n: torch.randn(p.shape, generator=generator) for n, p in self.base.items()}

    @torch.no_grad()
    def shift(self, h: float) -> None:
        for n, p in self.base.items():
            p += h * self.along[n]

    def slope(self, value: Callable[[], float]) -> float:
        self.shift(1e-5)
        up = value()
        self.shift(-2e-5)
        down = value()
        self.shift(1e-5)
        return (up - down) / 2e-5

    def inner(self, gradient: dict[str, Tensor]) -> float:
        return sum(float((gradient[n] * self.along[n]).sum()) for n in self.along)


def _stopped_weights(f: Found, loop: Loop) -> Callable[[], float]:
    """g^S's value with all that stands under sg(·) computed once, at the weights of now."""
    assert f.demos is not None
    texts = [
        (f.policy.encode_prompt(d.prompt), f.policy.encode_completion(d.solution))
        for d in f.demos.demonstrations_D
    ]
    if f.method.name == "prefix_rft":
        texts = [(prompt, solution[:3]) for prompt, solution in texts]
    then = [loop.logps(*text) for text in texts]
    entropy = [loop.entropies(*text) for text in texts]
    n = sum(len(row) for row in then)

    def value() -> float:
        total = 0.0
        for j, text in enumerate(texts):
            top = sorted(range(len(then[j])), key=lambda t: -entropy[j][t])
            learned = top[: math.ceil(0.2 * len(top))]
            for t, logp in enumerate(loop.logps(*text)):
                if f.method.name == "chord_phi":
                    p = math.exp(then[j][t])
                    total += p * (1 - p) * logp / n
                elif f.method.name == "srft":
                    advantage = float(f.demos.advantages_D[j])
                    weight = 0.5 * math.exp(-fmean(entropy[j]))
                    total += (weight * logp + advantage * math.exp(logp)) / n
                elif t in learned:
                    ratio = math.exp(logp - then[j][t])
                    total += ratio * float(f.demos.advantages_D[j]) / float(f.demos.divisor)
        return total

    return value
