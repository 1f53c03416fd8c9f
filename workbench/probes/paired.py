"""A mean difference of paired rewards, with an interval that stays honest where few pairs differ.

Both sides of a pair are drawn on the same noise (common random numbers), so most pairs are equal
and their difference is known far better than either reward. The usual interval then covers too
little: where no pair happens to differ its width is 0, whatever the truth. So the interval is made
after adding two made-up pairs, one won and one lost, which is Bonett and Price's adjusted Wald
interval for paired proportions ("Adjusted Wald confidence interval for a difference of binomial
proportions based on paired data", J. Educ. Behav. Stat. 37, 2012). Theirs pools all pairs; here the
variance is that within problems, since the problems are taken as given. [ours]
"""

from __future__ import annotations

from functools import cache
from math import sqrt
from typing import NamedTuple

from torch import Tensor

from workbench.probes.gain import student_t_tail


class PairedDifference(NamedTuple):
    """Mean difference of two sides over the same problems and noise."""

    difference: float
    standard_error: float
    """0 where the pairs of each problem agree, which is no proof that the sides do."""
    low: float
    """95 % interval; it may be off centre, and is never of width 0."""
    high: float


NOTHING = PairedDifference(0.0, 0.0, 0.0, 0.0)
"""A side against itself."""


def paired_difference(first_PK: Tensor, second_PK: Tensor) -> PairedDifference:
    """Mean of first − second over P problems and K ≥ 2 pairs each, rewards in [0, 1].

    se² = s²/PK with s² the mean variance of the differences within a problem. With n = PK the
    interval is Σd/(n+2) ± t·√((n·s² + 2)/(n+2)²), Student's t with P(K−1) degrees of freedom.
    """
    pairs = first_PK.double() - second_PK.double()
    n_problems, n = pairs.shape[0], pairs.numel()
    variance = float(pairs.var(1).mean())
    centre = float(pairs.sum()) / (n + 2)
    reach = t_quantile(n - n_problems) * sqrt(n * variance + 2) / (n + 2)
    return PairedDifference(float(pairs.mean()), sqrt(variance / n), centre - reach, centre + reach)


def mean_error(rewards_PK: Tensor) -> float:
    """Standard error of the mean reward, the problems taken as given: (P, K) with K ≥ 2."""
    rewards = rewards_PK.double()
    return sqrt(float(rewards.var(1).mean()) / rewards.numel())


@cache
def t_quantile(dof: int, level: float = 0.05) -> float:
    """t with P(|T| > t) = level for Student's t, by bisection; 12.7 for one degree of freedom."""
    low, high = 0.0, 1.0
    while student_t_tail(high, dof) > level:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        if student_t_tail(middle, dof) > level:
            low = middle
        else:
            high = middle
    return high
