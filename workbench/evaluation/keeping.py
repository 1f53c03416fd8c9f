"""Keep what an evaluation found with what was asked; evaluate the policies that a run has now."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.engine import Engine
from workbench.evaluation.evaluate import Evaluation, evaluate
from workbench.evaluation.subjects import POLICIES, Subject
from workbench.store import evaluations
from workbench.tasks.sets import file_columns, load_set


def keep(
    found: Evaluation,
    subject: Subject,
    folder: Path,
    label: str,
    asked: Mapping[str, Any],
    outside: Mapping[str, Any] | None = None,
) -> Path:
    """Write an evaluation as `folder`/label-DATE, and return that.

    asked: subject, sets, samples, temperature, max_new_tokens, seed, reward. outside: lm-eval's.
    """
    summary = {
        **asked,
        "step": subject.step,
        "policies": list(subject.names),
        "scores": found.scores.to_dict("records"),
        "comparisons": found.comparisons.to_dict("records"),
        "lm_eval": dict(outside or {}),
    }
    name = f"{label}-{time.strftime('%Y%m%d-%H%M%S')}"
    return evaluations.write(folder, name, found.completions, summary)


def label_of(step: int) -> str:
    """How an evaluation of a run at a step is called, but for its date."""
    return f"step-{step:06d}"


def evaluate_now(
    engine: Engine, sets: Sequence[str], samples: int, limit: int | None, progress: bool
) -> Evaluation:
    """Evaluate every policy that a run holds in memory, and keep it in its folder.

    Raises ConfigError where a set cannot be had, RunFolderError where nothing can be written.
    """
    config, policy = engine.config, engine.policy
    held = {"baseline": policy.baseline is not None, "base": policy.reference is not None}
    names = tuple(name for name in POLICIES if held.get(name, True))
    subject = Subject(policy, config, names, None, engine.step_number)
    chosen = [
        load_set(
            name,
            task=engine.task,
            settings=config.task,
            columns=file_columns(config.task),
            reward="task",
            suffix=None,
            folder=Path("data"),
            limit=limit,
        )
        for name in sets
    ]
    longest = config.probes.evaluation_max_new_tokens
    found = evaluate(subject, chosen, samples=samples, max_new_tokens=longest, progress=progress)
    asked = {
        "subject": str(engine.store.path),
        "sets": list(sets),
        "samples": samples,
        "temperature": 1.0,
        "max_new_tokens": longest,
        "seed": 0,
        "reward": "task",
    }
    folder = engine.store.path / evaluations.EVALUATIONS
    keep(found, subject, folder, label_of(subject.step), asked)
    return found
