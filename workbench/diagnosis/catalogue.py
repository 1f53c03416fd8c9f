"""All detectors, in the order their findings are told, and `diagnose`, which runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isnan
from typing import Any

import pandas as pd

from workbench.diagnosis import (
    cooperation,
    demonstrations,
    entropy,
    gradients,
    groups,
    kl,
    lengths,
    non_finite,
    phases,
    progress,
    ratios,
    reward_errors,
    rewards,
    texts,
    unfollowed,
)
from workbench.diagnosis.detector import (
    COOLDOWN,
    SEVERITIES,
    WARM_UP,
    Detector,
    Skipped,
    Watch,
)
from workbench.diagnosis.signs import signs
from workbench.records import Finding

DETECTORS: tuple[Detector, ...] = (
    non_finite.DETECTOR,
    gradients.SPIKES,
    gradients.LOSS_SPIKES,
    gradients.VANISHING,
    gradients.ZERO,
    ratios.OUTLIERS,
    ratios.CLIPPING,
    ratios.MISMATCH,
    kl.BLOWUP,
    kl.STRANGLED,
    entropy.COLLAPSE,
    entropy.EXPLOSION,
    groups.DETECTOR,
    lengths.TRUNCATION,
    lengths.GROWTH,
    texts.REPETITION,
    texts.GIBBERISH,
    rewards.HACKING,
    rewards.NOISY,
    rewards.SILENT_REWARD,
    reward_errors.DETECTOR,
    demonstrations.DETECTOR,
    cooperation.CONFLICT,
    cooperation.HARM,
    cooperation.COORDINATOR_INERT,
    cooperation.COORDINATOR_BLOWUP,
    cooperation.DRIFT,
    unfollowed.DETECTOR,
    progress.FALL,
    progress.PLATEAU,
    phases.DETECTOR,
)


@dataclass(frozen=True)
class Diagnosis:
    """What the detectors found in a run."""

    findings: list[Finding]
    """The most severe first, then the earliest."""
    skipped: list[Skipped]
    n_steps: int
    """Rows looked at."""


def diagnose(
    metrics: pd.DataFrame,
    rollouts: Callable[[int], pd.DataFrame] | None = None,
    settings: Mapping[str, Any] | Callable[[int], Mapping[str, Any]] | None = None,
    *,
    detectors: Iterable[Detector] = DETECTORS,
    warm_up: int = WARM_UP,
    cooldown: int = COOLDOWN,
) -> Diagnosis:
    """Run the detectors over a metrics frame: column `step`, then a column a metric.

    NaN is "not measured" and an infinity is a finding. rollouts: gives the frame "rollouts" of a
    step, for what its metrics do not hold yet. settings: the config by leaf name, or a function
    that gives the one in force at a step; without it suggestions name a setting but no value.
    """
    watch = Watch(detectors, warm_up, cooldown)
    findings: list[Finding] = []
    in_force = settings if callable(settings) else lambda step: settings or {}
    for step, row in rows_of(metrics):
        config = in_force(step)
        if rollouts is not None and "frac_reward_zero_std" in row and "groups/too_easy" not in row:
            clip = config.get("clip_range") or 0.2
            row = signs(rollouts(step).itertuples(), clip) | row
        findings += watch.see(step, row, config)
    return Diagnosis(worst_first(findings), watch.skipped(), watch.history.n_rows)


def rows_of(metrics: pd.DataFrame) -> Iterable[tuple[int, dict[str, float]]]:
    """(step, measured values by name) of each row of a metrics frame."""
    names = [name for name in metrics.columns if name != "step"]
    for step, values in zip(metrics["step"], metrics[names].to_numpy(dtype=float), strict=True):
        measured = zip(names, values, strict=True)
        yield int(step), {name: float(value) for name, value in measured if not isnan(value)}


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Findings by severity, then by onset."""
    return sorted(findings, key=lambda f: (-SEVERITIES.index(f.severity), f.since, f.step))
