"""Per-token arithmetic of a rollout: what its log-probs say about the policies; no model.

Every number is made from log-probs that the rollout already carries, so a run can be read with it
on a machine without the weights. What needs an array that was not measured is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, expm1, isnan, nan
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workbench.config import RunConfig, TrainingConfig
from workbench.records import RolloutRow, TokenTerm
from workbench.tasks.environment import ENVIRONMENT

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


def token_frame(
    rollout: RolloutRow,
    clip_range: float = 0.2,
    terms: Sequence[Sequence[TokenTerm]] = (),
) -> pd.DataFrame:
    """One row a token of a rollout.

    Columns: position, token_id, token; probability (under θ+w, or when sampled where the trainer
    recomputed nothing); entropy; advantage; and, NaN where an array was not measured,

    - ratio: π_(θ+w) recomputed / at sampling; 1 up to rounding, unless sampler and trainer disagree
    - baseline_ratio: π_(θ̂+w)/π_(θ+w), the live ratio of the RL-only baseline's update
    - baseline_clipped: 1.0 where the clip removes that token from the baseline's gradient, else 0.0
    - kl: k3 estimate of KL(π_(θ+w) ‖ starting policy), nats
    - coordinator_difference: log π_(θ+w) − log π_θ, nats

    written_by: 'policy', or who else wrote the token; why: its term of each loss, filled
    in, and which way it pushes; empty without `terms` (`Session.token_terms`).
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
    writers = list(rollout.written_by)
    frame["written_by"] = writers if writers else ["policy"] * n
    frame["why"] = [_told(each) for each in terms] if terms else ""
    return frame


def _told(terms: Sequence[TokenTerm]) -> str:
    names = {"rl": "J_RL of the joint policy", "baseline_rl": "J_RL of the RL-only baseline"}
    return "\n".join(f"{names[t.loss]}: {t.formula}\n  {t.why}" for t in terms)


def n_learned(rollouts: Sequence[RolloutRow]) -> int:
    """N of `token_terms`: completion tokens of a step's training rollouts but the environment's."""
    return sum(len(row.token_ids) - row.written_by.count(ENVIRONMENT) for row in rollouts)


GRPO_METHODS = (
    "bridge",
    "grpo",
    "naive_mix",
    "cold_start",
    "alternating",
    "chord_mu",
    "chord_phi",
    "relift",
)
"""Methods whose rollouts are all learned by GRPO's own objective."""


def terms_known(config: RunConfig) -> bool:
    """Whether `token_terms` has this run's RL objective: that of GRPO."""
    return config.method in GRPO_METHODS and config.training.rl_loss == "grpo"


def token_terms(
    rollout: RolloutRow, position: int, config: TrainingConfig, n_tokens: int
) -> list[TokenTerm]:
    """What one token of a training rollout adds to each RL objective.

    A term for J_RL of the joint policy and, where the method has it, one for that of the RL-only
    baseline on the same rollouts, in this order:

        [ min(ρA, clip(ρ, 1−ε, 1+ε)·A) − kl_coef·k3 ] / N

    ρ is exactly 1 for the joint policy, whose log-probs are their own old ones, and π_(θ̂+w)/π_(θ+w)
    for the baseline (workbench/training/objectives.py). `config`: the step's (`Run.config_at`).
    `n_tokens`: N, see `n_learned`. A token that the environment wrote adds nothing. Empty for a
    rollout that nothing was trained on.
    """
    if not rollout.logprob:
        return []
    if rollout.written_by and rollout.written_by[position] == ENVIRONMENT:
        losses: tuple[Literal["rl", "baseline_rl"], ...] = ("rl", "baseline_rl")
        return [
            _not_learned(loss, position, rollout.advantage)
            for loss in losses[: 2 if rollout.baseline_logprob else 1]
        ]
    now = rollout.logprob[position]
    reference = rollout.reference_logprob[position] if rollout.reference_logprob else nan
    terms = [_term("rl", position, 1.0, now, reference, rollout.advantage, config, n_tokens)]
    if rollout.baseline_logprob:
        baseline = rollout.baseline_logprob[position]
        live = exp(baseline - now)
        terms.append(
            _term(
                "baseline_rl",
                position,
                live,
                baseline,
                reference,
                rollout.advantage,
                config,
                n_tokens,
            )
        )
    return terms


def _not_learned(loss: Literal["rl", "baseline_rl"], position: int, advantage: float) -> TokenTerm:
    return TokenTerm(
        loss=loss,
        position=position,
        ratio=1.0,
        advantage=advantage,
        clipped=False,
        surrogate=0.0,
        kl=0.0,
        share=0.0,
        value=0.0,
        push=0.0,
        formula="0",
        why="not pushed: the environment wrote it",
    )


def _term(
    loss: Literal["rl", "baseline_rl"],
    position: int,
    ratio: float,
    logprob: float,
    reference_logprob: float,
    advantage: float,
    config: TrainingConfig,
    n_tokens: int,
) -> TokenTerm:
    low, high = 1 - config.clip_range, 1 + config.clip_range
    removed = bool(clipped(np.array([ratio]), advantage, config.clip_range)[0])
    held = min(max(ratio, low), high)
    surrogate = min(ratio * advantage, held * advantage)
    kl_coef = 0.0 if isnan(reference_logprob) else config.kl_coef
    log_x = reference_logprob - logprob
    kl = expm1(log_x) - log_x
    pull = kl_coef * -expm1(log_x) if kl_coef else 0.0  # d(kl_coef·k3)/d log π
    reward_push = 0.0 if removed else ratio * advantage
    value = (surrogate - (kl_coef * kl if kl_coef else 0.0)) / n_tokens
    push = (reward_push - pull) / n_tokens
    r, a, h = _number(ratio), _number(advantage), _number(held)
    penalty = f" − {_number(kl_coef)}·{_number(kl)}" if kl_coef else ""
    formula = (
        f"[min(ρA, clip(ρ, {_number(low)}, {_number(high)})·A)"
        f"{' − kl_coef·k3' if kl_coef else ''}] / N"
        f" = (min({r}·{a}, {h}·{a}){penalty}) / {n_tokens} = {_number(value)}"
    )
    pulled = f" − {_number(kl_coef)}·(1 − {_number(exp(log_x))})" if kl_coef else ""
    slope = f"∂/∂log π = ({'0' if removed else f'{r}·{a}'}{pulled}) / {n_tokens} = {_number(push)}"
    return TokenTerm(
        loss=loss,
        position=position,
        ratio=ratio,
        advantage=advantage,
        clipped=removed,
        surrogate=surrogate,
        kl=kl,
        share=1 / n_tokens,
        value=value,
        push=push,
        formula=formula,
        why=f"{_why(push, advantage, ratio, removed, low, high)}; {slope}",
    )


def _why(
    push: float, advantage: float, ratio: float, removed: bool, low: float, high: float
) -> str:
    """The direction and its reason in words."""
    direction = "pushed up" if push > 0 else "pushed down" if push < 0 else "not pushed"
    if removed:
        reason = f"clipped, since ρ = {_number(ratio)} has left {_number(low)} to {_number(high)}"
    elif advantage == 0:
        reason = "no advantage: the rewards of its group are equal"
    else:
        side = "above" if advantage > 0 else "below"
        reason = f"its reward lies {side} its group's mean, A = {_number(advantage)}"
    if push and (removed or advantage == 0):
        reason += "; what is left is the pull towards the starting policy"
    elif (push > 0) != (advantage > 0):
        reason += ", but the pull towards the starting policy is stronger"
    return f"{direction}: {reason}"


def _number(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def _aligned(a: Sequence[float], b: Sequence[float]) -> tuple[Values, Values]:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert first.shape == second.shape, "token arrays of one rollout have one length"
    return first, second
