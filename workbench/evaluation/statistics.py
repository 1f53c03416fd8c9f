"""Pass rates with their intervals, and tests between two policies on the same problems.

All resampling is seeded by what is compared, so the same completions give the same numbers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
RESAMPLES = 4000
LEVEL = 0.95


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k completions is right: 1 − C(n−c, k)/C(n, k).

    n completions were drawn, c of them are right, k ≤ n. [Chen et al., arXiv 2107.03374]
    """
    return 1.0 - comb(n - c, k) / comb(n, k)


@dataclass(frozen=True)
class Interval:
    """A mean over problems, with its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap(values: Values, purpose: str) -> Interval:
    """The mean of one number a problem; percentile bootstrap over problems.

    Where all are 0 or all are 1, resampling knows of no error: the exact binomial bound is given
    (Clopper and Pearson, one-sided 2.5 %).
    """
    mean, n = float(values.mean()), len(values)
    if mean in (0.0, 1.0):
        bound = ((1 - LEVEL) / 2) ** (1 / n)
        return Interval(mean, 0.0 if mean == 0 else bound, 1 - bound if mean == 0 else 1.0)
    low, high = _percentiles(_resampled(values, purpose))
    return Interval(mean, low, high)


@dataclass(frozen=True)
class Difference:
    """First minus second policy on the same problems."""

    difference: float
    low: float
    high: float
    """95 % interval."""
    p_value: float
    """Two-sided; McNemar's exact test where both are 0 or 1, else from the paired bootstrap."""
    test: str
    """'mcnemar' or 'bootstrap'."""


def compare(first: Values, second: Values, purpose: str) -> Difference:
    """Compare two policies by one number a problem each, in the same order.

    The interval is a paired bootstrap's: problems are resampled, both numbers with them.
    """
    paired = first - second
    drawn = _resampled(paired, purpose)
    low, high = _percentiles(drawn)
    binary = bool(np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all())
    if binary:
        p, test = mcnemar(int((paired > 0).sum()), int((paired < 0).sum())), "mcnemar"
    else:
        below, above = float((drawn <= 0).mean()), float((drawn >= 0).mean())
        p, test = min(1.0, 2 * max(min(below, above), 1 / RESAMPLES)), "bootstrap"
    return Difference(float(paired.mean()), low, high, p, test)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p-value: problems only the first solves against those only the second does.

    Under the null each of them is a fair coin. [McNemar 1947, exact binomial form]
    """
    n, most = gained + lost, max(gained, lost)
    tail = sum(comb(n, i) for i in range(most, n + 1)) / 2**n
    return min(1.0, 2 * tail)


def _resampled(values: Values, purpose: str) -> Values:
    """Means of RESAMPLES draws of the values with replacement."""
    key = hashlib.blake2b(f"bootstrap/{purpose}".encode(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(key, "big"))
    counts = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=RESAMPLES)
    return counts @ values / len(values)


def _percentiles(drawn: Values) -> tuple[float, float]:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return float(low), float(high)
