"""Whether a run learns: what is trouble in one that does not may be its price in one that does."""

from __future__ import annotations

import numpy as np

from workbench.diagnosis.history import History
from workbench.diagnosis.statistics import binomial_error, trend_z

SOLVED = 0.85
"""Mean reward, of at most 1, from which a fading gradient is success. [rldoctor: saturated]"""
RISING_Z = 1.0
"""Of the reward's trend over 20 rows, by Mann and Kendall. [ours]"""


def solved(h: History) -> bool:
    """Whether little is left to learn: rewards of at most 1 are nearly all earned."""
    rewards = h.tail("reward", 8)
    if len(rewards) and rewards.min() >= 0 and rewards.max() <= 1 + 1e-9:
        return float(np.median(rewards)) >= SOLVED
    return False


def gaining(h: History) -> bool:
    """Whether the reward rises, or the held-out accuracy has, beyond its noise.

    The accuracy: either of the last two evaluations is two standard errors above the one before
    them. A step's reward hangs on how hard its few prompts are; an evaluation has the same
    prompts each time.
    """
    if trend_z(h.tail("reward", 20)) > RISING_Z:
        return True
    accuracy = h.tail("eval/accuracy", 3)
    if len(accuracy) < 3:
        return False
    n = h.setting("evaluation_prompts") or 100
    before, now = float(accuracy[0]), float(accuracy[1:].max())
    return now - before > 2 * float(np.hypot(binomial_error(before, n), binomial_error(now, n)))
