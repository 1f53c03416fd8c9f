"""Pass rates, intervals and tests, each against another way to get the number."""

import itertools
import random

import numpy as np
import pytest

from workbench.evaluation.statistics import bootstrap, compare, mcnemar, pass_at_k


@pytest.mark.parametrize(("n", "c"), [(5, 0), (5, 2), (6, 5), (6, 6), (7, 1)])
def test_pass_at_k_is_the_share_of_all_choices_with_a_right_one(n: int, c: int) -> None:
    right = [i < c for i in range(n)]
    for k in range(1, n + 1):
        choices = list(itertools.combinations(right, k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, choices)) / len(choices))


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 1), (3, 3), (2, 9)])
def test_mcnemar_counts_the_coin_tosses_that_are_as_uneven(gained: int, lost: int) -> None:
    n = gained + lost
    tosses = [sum(coins) for coins in itertools.product((0, 1), repeat=n)]
    uneven = [t for t in tosses if abs(2 * t - n) >= abs(gained - lost)]
    assert mcnemar(gained, lost) == pytest.approx(min(1.0, len(uneven) / len(tosses)))


def test_the_bootstraps_interval_is_the_normal_one_of_many_problems() -> None:
    values = np.array([float(random.Random(i).random() < 0.3) for i in range(900)])
    found = bootstrap(values, "x")
    error = values.std() / 30
    assert found.value == values.mean()
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    assert bootstrap(values, "x") == found


def test_all_right_or_all_wrong_still_has_an_interval() -> None:
    right, wrong = bootstrap(np.ones(10), "x"), bootstrap(np.zeros(10), "x")
    assert right.low**10 == pytest.approx(0.025)  # ten of ten are this likely there
    assert (1 - wrong.high) ** 10 == pytest.approx(0.025)
    assert (right.high, wrong.low) == (1.0, 0.0)


def test_a_comparison_is_paired() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(300)
    first = np.clip(hard + 0.05, 0, 1)
    found = compare(first, hard, "x")
    assert found.test == "bootstrap"
    assert found.low < found.difference < found.high
    assert found.high - found.low < 0.01  # unpaired it would be wider than 0.09
    assert found.p_value < 0.01
    same = compare(hard, hard, "x")
    assert (same.difference, same.p_value) == (0.0, 1.0)
    solved = (hard > 0.5).astype(float)
    more = np.maximum(solved, (np.arange(300) % 50 == 0).astype(float))
    gained = int((more - solved).sum())
    binary = compare(more, solved, "x")
    assert (binary.test, binary.p_value) == ("mcnemar", mcnemar(gained, 0))
