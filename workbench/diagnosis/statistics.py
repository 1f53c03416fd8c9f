"""Robust statistics: few points, heavy tails, no assumption on the noise."""

from __future__ import annotations

import numpy as np

MAD_TO_SIGMA = 1.4826
"""σ of a normal distribution over its median absolute deviation."""


def spread(values: np.ndarray) -> float:
    """σ estimated by the median absolute deviation; of fewer than two values 0."""
    if len(values) < 2:
        return 0.0
    return float(MAD_TO_SIGMA * np.median(np.abs(values - np.median(values))))


def robust_z(value: float, past: np.ndarray) -> float:
    """How many robust σ `value` lies above the median of `past`; 0 for fewer than five.

    The σ is at least 5 % of the median's size, so that a flat past does not make all of it news.
    """
    if len(past) < 5:
        return 0.0
    middle = float(np.median(past))
    sigma = max(spread(past), 0.05 * abs(middle), 1e-12)
    return (value - middle) / sigma


def trend_z(values: np.ndarray) -> float:
    """Mann and Kendall's test for a trend: z > 1.64 rises, z < −1.64 falls (one-sided 5 %).

    0 for fewer than four values. Source: Mann, Econometrica 13 (1945); ties are corrected for.
    """
    n = len(values)
    if n < 4:
        return 0.0
    above = np.sign(values[None, :] - values[:, None])
    s = float(np.triu(above, 1).sum())
    _, ties = np.unique(values, return_counts=True)
    variance = n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())
    if variance <= 0:
        return 0.0
    return (s - np.sign(s)) / float(np.sqrt(variance / 18))


def slope(values: np.ndarray) -> float:
    """Theil and Sen's slope a row: the median of all pairwise slopes; 0 for fewer than two."""
    n = len(values)
    if n < 2:
        return 0.0
    first, second = np.triu_indices(n, 1)
    return float(np.median((values[second] - values[first]) / (second - first)))


def binomial_error(share: float, n: float) -> float:
    """Standard error of a share of n trials, never 0 (Agresti and Coull's n + 4)."""
    middle = (share * n + 2) / (n + 4)
    return float(np.sqrt(middle * (1 - middle) / (n + 4)))
