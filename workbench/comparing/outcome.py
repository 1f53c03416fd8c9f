"""What one run of a comparison came to: a JSON file in its run folder, written when it is done."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

OUTCOME = "outcome.json"
TRAINING = ("rollouts", "rewards", "gradients", "update")
"""Phases that are training; probes, which some methods have more of, and records are not."""


@dataclass(frozen=True)
class Outcome:
    """Numbers of a finished run. Accuracies are greedy, on whole splits, in [0, 1]."""

    asked: dict[str, object]
    """Budget and steps it was run for: another budget is another run."""
    steps: int
    checkpoints: list[int]
    accuracy: list[float]
    """On the validation split, after each checkpoint."""
    hard_accuracy: list[float]
    """Out of distribution; NaN where the task has no such split."""
    seconds: float
    """Of training: rollouts, rewards, gradients and updates, without probes and records."""
    tokens: float
    """Tokens generated in training."""
    peak_mb: float
    """Peak memory of the process, and of the GPU where it had one, MiB."""
    findings: int
    """Warnings and critical findings."""


def write_outcome(run: Path, outcome: Outcome) -> None:
    """Write it at once or not at all."""
    part = run / f"{OUTCOME}.part"
    part.write_text(json.dumps(asdict(outcome), indent=1), encoding="utf-8")
    part.replace(run / OUTCOME)


def read_outcome(run: Path) -> Outcome | None:
    """The outcome of a run folder; None where the run is not done."""
    try:
        return Outcome(**json.loads((run / OUTCOME).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def training_seconds(metrics: pd.DataFrame) -> pd.Series:
    """Seconds of training of each step, without probes and records."""
    names = [f"seconds/{phase}" for phase in TRAINING if f"seconds/{phase}" in metrics]
    return metrics[names].fillna(0.0).sum(axis=1)


def generated_tokens(metrics: pd.DataFrame) -> pd.Series:
    """Tokens generated for training at each step."""
    if "completions/generated_tokens" not in metrics:
        return pd.Series(0.0, index=metrics.index)
    return metrics["completions/generated_tokens"].fillna(0.0)
