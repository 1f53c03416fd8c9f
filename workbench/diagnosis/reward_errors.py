"""Rewards that fail: what they could not score counts as wrong."""

from __future__ import annotations

from collections.abc import Iterator

from workbench.diagnosis.detector import Detector, Symptom
from workbench.diagnosis.history import History

WARNING, CRITICAL = 0.05, 0.5
"""Share of completions with a reward that failed. [ours]"""


def check(h: History) -> Iterator[Symptom]:
    """More than one completion in twenty has a reward that failed."""
    name = "reward/errors"
    share = h.level(name)
    if h.count(name) < 2 or share <= WARNING:
        return
    since = h.since(name, lambda v: v > WARNING)
    yield Symptom(
        "critical" if share >= CRITICAL else "warning",
        since,
        f"A reward failed on {share:.0%} of the completions since step {since}; they count as "
        "wrong. The rollouts hold each error (reward_error).",
        {"metric": name, "share": share},
        (
            "answers in the data that the reward cannot read",
            "a reward function with a fault",
            "completions that are slow to compare, beyond the reward's limit of time",
        ),
        {"rewards": None},
    )


DETECTOR = Detector("reward_errors", (("reward/errors",),), check, "5 % [ours]")
