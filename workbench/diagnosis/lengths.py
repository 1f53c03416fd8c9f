"""Completions that are cut off, or grow without earning more."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from workbench.diagnosis.detector import Detector, Severity, Symptom, higher, lower
from workbench.diagnosis.history import History
from workbench.diagnosis.statistics import trend_z

CUT_WARNING, CUT_CRITICAL = 0.05, 0.15
"""[rldoctor length_pathology]"""
GREW, EXPLODED = 1.5, 2.5
"""Times the early length; 1.5: [rldoctor], 2.5: [ours]"""


def check_truncation(h: History) -> Iterator[Symptom]:
    """Completions stopped by the length limit: their rewards tell of the limit, not the policy."""
    name = "completions/clipped_ratio"
    cut = h.level(name)
    if h.count(name) < 8 or cut < CUT_WARNING:
        return
    since = h.since(name, lambda v: v >= CUT_WARNING)
    yield Symptom(
        "critical" if cut >= CUT_CRITICAL else "warning",
        since,
        f"{cut:.0%} of the completions are cut off by the length limit since step {since}.",
        {"metric": name, "share": cut, "mean_length": h.level("completions/mean_length")},
        (
            "a length limit below what the task needs",
            "a policy that no longer ends its texts",
        ),
        higher(h, "max_new_tokens", 2),
    )


def check_growth(h: History) -> Iterator[Symptom]:
    """Length half as long again as at the start, while neither reward nor accuracy rises."""
    name = "completions/mean_length"
    if h.count(name) < 12:
        return
    early, now = h.start(name), h.level(name)
    if early <= 0 or now < GREW * early:
        return
    rewards, accuracy = h.tail("reward", 24), h.tail("eval/accuracy", 6)
    earning = trend_z(rewards) > 1.64 if len(rewards) else False
    better = len(accuracy) >= 2 and accuracy[-1] > float(np.median(accuracy[:-1])) + 0.02
    paid = h.level("reward") > h.start("reward") + 0.1 or bool(
        len(accuracy) >= 2 and h.level("eval/accuracy", 2) > h.start("eval/accuracy", 2) + 0.1
    )
    if earning or better or paid:
        return
    severity: Severity = "warning" if now >= EXPLODED * early else "note"
    yield Symptom(
        severity,
        h.since(name, lambda v: v >= GREW * early),
        f"Completions grew from {early:.0f} to {now:.0f} tokens while the reward did not rise.",
        {"metric": name, "early": early, "now": now, "reward": h.level("reward")},
        ("the policy pads its texts", "the policy loses the habit of ending its texts"),
        lower(h, "base_lr", 3) | higher(h, "kl_coef", 3),
    )


TRUNCATION = Detector(
    "truncation",
    (("completions/clipped_ratio",),),
    check_truncation,
    "rldoctor length_pathology: 5 %, 15 % (DAPO's overlong filtering, arXiv 2503.14476)",
)
GROWTH = Detector(
    "length_explosion",
    (("completions/mean_length",),),
    check_growth,
    "rldoctor length_pathology: +50 %; 2.5 times [ours]",
)
