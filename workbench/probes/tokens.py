"""Per-token arithmetic of a rollout: what its log-probs say about the policies; no model.

Every number is made from log-probs that the rollout already carries, so a run can be read with it
on a machine without the weights. What needs an array that was not measured is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workbench.records import RolloutRow

Values = NDArray[np.float64]


def probability(logprob: Sequence[float]) -> Values:
    """π = exp(log π) of each token."""
    return np.exp(np.asarray(logprob, dtype=np.float64))


def ratio(logprob: Sequence[float], behaviour_logprob: Sequence[float]) -> Values:
    """π/π_behaviour of each token: exp(log π − log π_behaviour)."""
    now, then = _aligned(logprob, behaviour_logprob)
    return np.exp(now - then)


def k3(logprob: Sequence[float], reference_logprob: Sequence[float]) -> Values:
    """Estimate of KL(π ‖ π_ref) at each token sampled from π, nats: x − 1 − log x, x = π_ref/π.

    Never negative; its mean over tokens from π is the KL. Source: Schulman, "Approximating KL
    Divergence" (2020); the penalty of GRPO (arXiv 2402.03300).
    """
    now, reference = _aligned(logprob, reference_logprob)
    log_x = reference - now
    return np.expm1(log_x) - log_x


def difference(logprob: Sequence[float], other_logprob: Sequence[float]) -> Values:
    """log π − log π_other of each token, nats; above 0: π likes the token better."""
    now, other = _aligned(logprob, other_logprob)
    return now - other


def clipped(ratios: Values, advantage: float, clip_range: float) -> NDArray[np.bool_]:
    """Tokens whose gradient PPO's clip removes: the ratio has left [1−ε, 1+ε] on the far side.

    That is above 1+ε where the advantage is positive, below 1−ε where it is negative.
    """
    if advantage >= 0:
        return (ratios > 1 + clip_range) & (advantage > 0)
    return ratios < 1 - clip_range


def log_ratio_of_text(logprob: Sequence[float], behaviour_logprob: Sequence[float]) -> float:
    """log of the whole text's importance weight, Σ_t (log π − log π_behaviour), nats."""
    return float(difference(logprob, behaviour_logprob).sum())


def token_frame(rollout: RolloutRow, clip_range: float = 0.2) -> pd.DataFrame:
    """One row a token of a rollout.

    Columns: position, token_id, token; probability (under θ+w, or when sampled where the trainer
    recomputed nothing); entropy; advantage; and, NaN where an array was not measured,

    - ratio: π_(θ+w) recomputed / at sampling; 1 up to rounding, unless sampler and trainer disagree
    - baseline_ratio: π_(θ̂+w)/π_(θ+w), the live ratio of the RL-only baseline's update
    - baseline_clipped: 1.0 where the clip removes that token from the baseline's gradient, else 0.0
    - kl: k3 estimate of KL(π_(θ+w) ‖ starting policy), nats
    - coordinator_difference: log π_(θ+w) − log π_θ, nats
    """
    n = len(rollout.token_ids)
    unmeasured = np.full(n, np.nan)
    now = rollout.logprob
    frame = pd.DataFrame(
        {
            "position": np.arange(n),
            "token_id": rollout.token_ids,
            "token": rollout.tokens,
            "probability": probability(now or rollout.sampling_logprob),
            "entropy": rollout.entropy or unmeasured,
            "advantage": np.full(n, rollout.advantage),
            "ratio": ratio(now, rollout.sampling_logprob) if now else unmeasured,
        }
    )
    frame["baseline_ratio"] = frame["baseline_clipped"] = frame["kl"] = unmeasured
    frame["coordinator_difference"] = unmeasured
    if now and rollout.baseline_logprob:
        live = ratio(rollout.baseline_logprob, now)
        frame["baseline_ratio"] = live
        frame["baseline_clipped"] = clipped(live, rollout.advantage, clip_range).astype(float)
    if now and rollout.reference_logprob:
        frame["kl"] = k3(now, rollout.reference_logprob)
    if now and rollout.coordinator_off_logprob:
        frame["coordinator_difference"] = difference(now, rollout.coordinator_off_logprob)
    return frame


def _aligned(a: Sequence[float], b: Sequence[float]) -> tuple[Values, Values]:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert first.shape == second.shape, "token arrays of one rollout have one length"
    return first, second
