"""An exact test of 'neither side is better' for pairs of which each is won, lost or tied.

Ordered by |t|, Student's statistic of the differences. Under the hypothesis an outcome's
probability depends on q, the unknown share of pairs that differ; the p-value is the largest over q
of the chance of an outcome as far out as the one observed:

    p = max_q Σ over outcomes with |t| ≥ |t observed| of P(outcome; q)

So it is never too small, whatever q is. McNemar's test, which looks only at the pairs that differ,
keeps its level too, but sees less where most pairs are tied. Source: Suissa and Shuster, "The 2 × 2
matched-pairs trial: exact unconditional design and analysis", Biometrics 47 (1991); the order by t
is [ours].
"""

from __future__ import annotations

from functools import cache
from math import comb, inf

MOST_PAIRS = 128
"""Up to so many pairs all outcomes are gone through: some milliseconds, kept."""
_GRID = 256
"""Values of q tried. P is smooth in it."""


@cache
def exact_p(won: int, lost: int, n: int) -> float:
    """Two-sided p-value of 'the gain is 0' for n ≤ MOST_PAIRS pairs; the others are tied."""
    observed = _squared_t(won + lost, won - lost, n) * (1 - 1e-12)
    if observed == 0:
        return 1.0
    far_out = [  # of m pairs that differ: the chance that they are split as unevenly
        sum(comb(m, w) / 2**m for w in range(m + 1) if _squared_t(m, 2 * w - m, n) >= observed)
        for m in range(n + 1)
    ]
    ways = [comb(n, m) for m in range(n + 1)]

    def chance(q: float) -> float:
        return sum(
            ways[m] * q**m * (1 - q) ** (n - m) * far_out[m] for m in range(n + 1) if far_out[m]
        )

    return min(1.0, max(chance(i / _GRID) for i in range(1, _GRID + 1)))


def _squared_t(differing: int, net: int, n: int) -> float:
    """t² of n differences, `differing` of them ±1 with sum `net`; infinite where all are equal."""
    if net == 0:
        return 0.0
    spread = differing - net**2 / n
    return inf if spread <= 0 else net**2 * (n - 1) / (n * spread)
