"""The exact paired test against every sequence of wins, losses and ties there is."""

from itertools import product

import numpy as np
import pytest

from workbench.probes.exact import exact_p
from workbench.probes.gain import p_value
from workbench.records import GainRow


def statistic(sequence: tuple[int, ...]) -> float:
    d = np.array(sequence, dtype=float)
    if d.mean() == 0:
        return 0.0
    deviation = d.std(ddof=1)
    return np.inf if deviation == 0 else abs(d.mean()) / deviation


@pytest.mark.parametrize("n", [2, 3, 5, 7])
def test_p_is_the_worst_chance_of_a_sequence_as_far_out(n: int) -> None:
    sequences = list(product((1, 0, -1), repeat=n))
    t = np.array([statistic(sequence) for sequence in sequences])
    differing = np.array([sum(map(abs, sequence)) for sequence in sequences])
    for won in range(n + 1):
        for lost in range(n + 1 - won):
            tied = n - won - lost
            seen = statistic((1,) * won + (-1,) * lost + (0,) * tied)
            out = t >= seen * (1 - 1e-9)
            worst = max(
                float((out * (q / 2) ** differing * (1 - q) ** (n - differing)).sum())
                for q in np.linspace(0, 1, 2001)
            )
            assert exact_p(won, lost, n) == pytest.approx(worst, abs=2e-5)


@pytest.mark.parametrize("level", [0.05, 0.004])
@pytest.mark.parametrize("n", [8, 10, 32])
def test_no_share_of_ties_gives_more_false_alarms_than_the_level(n: int, level: float) -> None:
    rng = np.random.default_rng(0)
    for q in (0.1, 0.35, 0.6, 0.85, 1.0):
        drawn = rng.choice([1, -1, 0], p=[q / 2, q / 2, 1 - q], size=(20_000, n))
        p = np.array(
            [
                exact_p(int(w), int(z), n)
                for w, z in zip((drawn == 1).sum(1), (drawn == -1).sum(1), strict=True)
            ]
        )
        assert (p <= level).mean() <= level + 3 * (level / 20_000) ** 0.5


def test_the_rows_of_a_probe_are_tested_so_and_partial_rewards_are_not() -> None:
    def row(differences: list[float]) -> GainRow:
        d = np.array(differences)
        error = float(d.std(ddof=1) / len(d) ** 0.5)
        return GainRow(1, "paired", "", "", 0, 0, float(d.mean()), error, float("nan"), len(d))

    assert p_value(row([1, 1, 1, 1, 1, 0, 0, 0, -1, 0])) == exact_p(5, 1, 10)
    assert p_value(row([1.0] * 10)) == 2**-9
    assert p_value(row([0.5] * 10)) == 2**-9
    assert p_value(row([0.5, 0.25, 0, 0, 0, 0, 0, 0, 0, -0.5])) > 0.5
