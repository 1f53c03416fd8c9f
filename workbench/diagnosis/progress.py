"""Held-out accuracy: falling, or no longer moving."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from workbench.diagnosis.detector import Detector, Symptom, lower
from workbench.diagnosis.history import History
from workbench.diagnosis.statistics import binomial_error, spread, trend_z

FALL_LEAST = 0.15
WINDOW = 30


def check_fall(h: History) -> Iterator[Symptom]:
    """Held-out accuracy 3 standard errors and 0.15 below its best, in two evaluations running.

    By half: critical.
    """
    name = "eval/accuracy"
    values, steps = h.tail(name, 200), h.last_steps(name, 200)
    if len(values) < 2:
        return
    n = h.setting("evaluation_prompts") or 100
    at = int(values.argmax())
    best, now = float(values[at]), float(values[-1])
    if len(values) - at > 2:  # one bad evaluation is not a fall, unless there is no other yet
        now = float(values[-2:].max())
    fallen = best - now
    if fallen < max(FALL_LEAST, 3 * np.hypot(binomial_error(best, n), binomial_error(now, n))):
        return
    since = h.since(name, lambda v: best - v >= FALL_LEAST, misses=0)
    yield Symptom(
        "critical" if now <= best / 2 else "warning",
        since,
        f"Held-out accuracy fell from {best:.0%} at step {steps[at]} to {now:.0%}.",
        {"metric": name, "best": best, "best_step": steps[at], "now": now},
        (
            "the policy was moved too far: see the other findings of about that step",
            "demonstrations that teach something else than the task",
        ),
        lower(h, "base_lr", 5),
    )


def check_plateau(h: History) -> Iterator[Symptom]:
    """Neither held-out accuracy nor reward has moved beyond its noise for 30 rows: a note."""
    for name, window in (("eval/accuracy", 12), ("reward", WINDOW)):
        values = h.tail(name, window)
        if h.count(name) < window + 4 or h.n_rows < WINDOW:
            continue
        half = window // 2
        moved = abs(float(np.median(values[half:]) - np.median(values[:half])))
        if abs(trend_z(values)) > 1.28 or moved > spread(values):
            return
        since = h.last_steps(name, window)[0]
        yield Symptom(
            "note",
            since,
            f"{name} has stayed at {np.median(values):.2f} since step {since}: it moves within its "
            "noise only.",
            {"metric": name, "level": float(np.median(values)), "noise": spread(values)},
            ("what these prompts can teach is learned", "a learning rate that is too small"),
            {"terms": None, "base_lr": None},
        )
        return


FALL = Detector(
    "accuracy_fall",
    (("eval/accuracy",),),
    check_fall,
    "[ours]: 3 standard errors and 0.15",
    at_once=True,
)
PLATEAU = Detector(
    "plateau",
    (("reward", "eval/accuracy"),),
    check_plateau,
    "Mann–Kendall trend test, as rldoctor's plateau; 30 rows [ours]",
)
