"""The samples that carry a finding: what a person should read first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from workbench.diagnosis.signs import inconsistent_rollouts, loops

MOST = 16


def carriers(detector: str, rollouts: pd.DataFrame, most: int = MOST) -> list[int]:
    """Sequences of a step's training rollouts that carry a finding, the clearest first.

    `detector`: the finding's; `rollouts`: frame "rollouts" of one step. Those the finding is about
    where it is about single texts, e.g. the ones cut off; else those with the largest advantage.
    Empty where none is.
    """
    rows = [row for row in rollouts.itertuples() if row.purpose == "train"]
    if detector == "verifier_noisy":
        return inconsistent_rollouts(rows)[2][:most]
    weigh = WEIGHTS.get(detector, lambda row: abs(row.advantage))
    weighed = [(float(weigh(row)), row.sequence) for row in rows]
    weighed = [pair for pair in weighed if pair[0] > 0]
    return [sequence for _, sequence in sorted(weighed, key=lambda p: (-p[0], p[1]))[:most]]


def _against_reference(row: Any) -> float:
    if not len(row.reference_logprob):
        return 0.0
    return -float(np.mean(row.reference_logprob))


def _ratio(row: Any) -> float:
    if not len(row.baseline_logprob):
        return 0.0
    return float(np.abs(np.asarray(row.baseline_logprob) - np.asarray(row.logprob)).max())


def _mismatch(row: Any) -> float:
    if not len(row.logprob):
        return 0.0
    return float(np.abs(np.asarray(row.sampling_logprob) - np.asarray(row.logprob)).max())


WEIGHTS: dict[str, Callable[[Any], float]] = {
    "truncation": lambda row: 0.0 if row.finished else len(row.token_ids),
    "length_explosion": lambda row: len(row.token_ids),
    "repetition": lambda row: float(loops(row.token_ids)),
    "gibberish": _against_reference,
    "kl_blowup": _against_reference,
    "reward_hacking": lambda row: row.reward,
    "clipping": _ratio,
    "ratio_outliers": _ratio,
    "baseline_drift": _ratio,
    "logprob_mismatch": _mismatch,
}
"""By detector: how much a rollout carries its finding; 0: not at all."""
