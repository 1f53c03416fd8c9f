"""A phase of a step that has become slow.

The only detector that looks at a clock, so the only one whose findings differ between two equal
runs: it never does more than note, unless the config says so.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from workbench.diagnosis.detector import Detector, Symptom
from workbench.diagnosis.history import History

PHASES = ("rollouts", "rewards", "gradients", "update", "step")
"""Phases that last equally long at each step; probes do not."""
SLOWER, SECONDS = 3.0, 0.5


def check(h: History) -> Iterator[Symptom]:
    """The median of 5 steps is 3 times, and half a second above, that of the 30 before them."""
    for phase in PHASES:
        name = f"seconds/{phase}"
        values = h.tail(name, 35)
        if len(values) < 20:
            continue
        before, now = float(np.median(values[:-5])), float(np.median(values[-5:]))
        if now < SLOWER * before or now < before + SECONDS:
            continue
        since = h.since(name, lambda v, limit=SLOWER * before: v >= limit)  # type: ignore[misc]
        yield Symptom(
            "note",
            since,
            f"The phase “{phase}” takes {now:.1f} s a step since step {since}, {before:.1f} s "
            "before.",
            {"metric": name, "before": before, "now": now},
            (
                "completions have become longer",
                "something else uses the machine, or its memory is full",
            ),
            {"max_new_tokens": None, "micro_batch_tokens": None},
            kind=phase,
        )


DETECTOR = Detector(
    "slow_phase", (tuple(f"seconds/{p}" for p in PHASES),), check, "[ours]: 3 times the median"
)
