"""Advantages and objectives against the published formulas, in plain Python loops."""

from __future__ import annotations

import math
import random
from statistics import fmean, stdev

import pytest
import torch

from workbench.training.objectives import group_advantages, grpo_terms, kl_k3


def _numbers(n: int, c: int, seed: int, spread: float) -> list[list[float]]:
    rng = random.Random(seed)
    return [[rng.uniform(-spread, spread) for _ in range(c)] for _ in range(n)]


def _trl_loss(
    logps: list[list[float]],
    old: list[list[float]],
    reference: list[list[float]],
    advantages: list[float],
    lengths: list[int],
    epsilon: float,
    beta: float,
) -> float:
    """TRL's GRPOTrainer._compute_loss, loss_type 'bnpo' (one batch: also 'dapo'), in floats."""
    total = 0.0
    for row, length in enumerate(lengths):
        for t in range(length):
            coef_1 = math.exp(logps[row][t] - old[row][t])
            coef_2 = min(max(coef_1, 1 - epsilon), 1 + epsilon)
            loss = -min(coef_1 * advantages[row], coef_2 * advantages[row])
            delta = reference[row][t] - logps[row][t]
            total += loss + beta * (math.exp(delta) - delta - 1)
    return total / sum(lengths)


def test_advantages_are_the_groups_standard_scores() -> None:
    rewards = [[1.0, 0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0, 0.0], [0.5, 2.0, -1.0, 0.25, 0.0]]
    found = group_advantages(torch.tensor(rewards, dtype=torch.float64)).tolist()
    for group, row in zip(rewards, found, strict=True):
        expected = [(r - fmean(group)) / (stdev(group) + 1e-4) for r in group]
        assert row == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1])
def test_a_group_of_equal_rewards_has_no_advantages(reward: float) -> None:
    assert group_advantages(torch.full((2, 4), reward)).tolist() == [[0.0] * 4] * 2


def test_k3_is_never_negative_zero_for_equal_policies_and_its_mean_is_the_kl() -> None:
    logits = torch.tensor([[0.3, -1.0, 0.7, 0.1], [0.0, 0.2, 0.4, -0.9]], dtype=torch.float64)
    logp, ref = logits.log_softmax(-1)
    k3 = kl_k3(logp, ref)
    assert float(k3.min()) >= 0
    assert kl_k3(logp, logp).tolist() == [0.0] * 4
    exact = sum(p * (a - b) for p, a, b in zip(logp.exp(), logp, ref, strict=True))
    assert float((logp.exp() * k3).sum()) == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_grpo_objective_is_minus_trls_loss_on_both_sides_of_the_clip(beta: float) -> None:
    n, c, epsilon = 6, 7, 0.2
    logps, old = _numbers(n, c, 1, 0.5), _numbers(n, c, 2, 0.5)
    reference, lengths = _numbers(n, c, 3, 0.5), [7, 3, 5, 1, 7, 2]
    advantages = [1.3, -0.7, 0.0, 2.0, -1.1, 0.4]
    ratios = [
        math.exp(a - b)
        for now, then in zip(logps, old, strict=True)
        for a, b in zip(now, then, strict=True)
    ]
    assert min(ratios) < 1 - epsilon and max(ratios) > 1 + epsilon

    mask = torch.tensor([[1.0] * k + [0.0] * (c - k) for k in lengths], dtype=torch.float64)
    terms = grpo_terms(
        torch.tensor(logps, dtype=torch.float64),
        torch.tensor(old, dtype=torch.float64),
        torch.tensor(advantages, dtype=torch.float64),
        mask,
        epsilon,
        torch.tensor(reference, dtype=torch.float64),
        beta,
    )
    expected = _trl_loss(logps, old, reference, advantages, lengths, epsilon, beta)
    assert float(terms.objective_sum) / sum(lengths) == pytest.approx(-expected, rel=1e-12)


def test_clipped_tokens_are_those_without_gradient() -> None:
    n, c, epsilon = 5, 6, 0.1
    logps = torch.tensor(_numbers(n, c, 4, 0.4), dtype=torch.float64, requires_grad=True)
    old = torch.tensor(_numbers(n, c, 5, 0.4), dtype=torch.float64)
    advantages = torch.tensor([1.0, -1.0, 2.0, -0.5, 0.3], dtype=torch.float64)
    mask = torch.ones(n, c, dtype=torch.float64)
    mask[0, 3:] = 0
    terms = grpo_terms(logps, old, advantages, mask, epsilon, None, 0.0)
    (gradient,) = torch.autograd.grad(terms.objective_sum, logps)
    without = (gradient == 0) & (mask > 0)
    assert terms.clipped_sum == float(without.sum())
    assert 0 < terms.clipped_sum < float(mask.sum())
    # what is left is the plain policy gradient: ratio · advantage
    expected = (logps - old).exp() * advantages[:, None]
    assert torch.allclose(gradient[gradient != 0], expected[gradient != 0], rtol=1e-12)


def test_at_ratio_one_the_gradient_is_the_advantage() -> None:
    logps = torch.tensor(_numbers(3, 4, 6, 1.0), dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.5, -0.5, 0.0], dtype=torch.float64)
    terms = grpo_terms(
        logps, logps.detach(), advantages, torch.ones(3, 4, dtype=torch.float64), 0.2, None, 0.0
    )
    (gradient,) = torch.autograd.grad(terms.objective_sum, logps)
    assert gradient.tolist() == advantages[:, None].expand(3, 4).tolist()
    assert terms.clipped_sum == 0


def test_kl_is_measured_even_where_it_does_not_count() -> None:
    logps, reference = torch.zeros(1, 3), torch.tensor([[0.1, -0.2, 9.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    terms = grpo_terms(logps, logps, torch.zeros(1), mask, 0.2, reference, 0.0)
    expected = sum(math.exp(d) - d - 1 for d in (0.1, -0.2))
    assert terms.kl_sum == pytest.approx(expected, rel=1e-5)
    assert float(terms.objective_sum) == 0
