"""Entropy that runs out before the run does, or explodes."""

from __future__ import annotations

from collections.abc import Iterator
from math import log

import numpy as np

from workbench.diagnosis.detector import Detector, Symptom, higher, lower
from workbench.diagnosis.history import History
from workbench.diagnosis.learning import gaining, solved
from workbench.diagnosis.statistics import slope, trend_z

FLOOR = 0.10
"""Share of the early entropy below which nothing is explored. [rldoctor entropy_collapse]"""
SOON, LATER = 0.25, 1.0
"""Arrival at the floor within this share of the run so far: warning, note. [rldoctor]"""
NEAR_ZERO = 0.01
"""Nats a token: practically one continuation. [ours]"""
EXPLODED, EXPLODED_LEAST = 3.0, 0.3
"""Times the early entropy, and nats above it. [ours]"""


def check_collapse(h: History) -> Iterator[Symptom]:
    """Judged by the projected arrival at the floor while neither reward nor accuracy rises.

    Entropy falls in each run that learns: only a fall that buys nothing counts. It falls by a
    factor a step, so the projection is a line through its logarithm.
    """
    if h.count("entropy") < 8 or solved(h):
        return
    early, now = h.start("entropy"), h.level("entropy")
    if early <= 0:
        return
    alike = h.level("frac_reward_zero_std", 8)
    if h.level("entropy", 8) <= NEAR_ZERO and early <= 2 * NEAR_ZERO and alike >= 0.5:
        temperature = h.setting("temperature")
        yield Symptom(
            "warning",
            h.since("entropy", lambda v: v <= 2 * NEAR_ZERO),
            f"Entropy was {early:.2g} nats a token from the start and {alike:.0%} of the groups "
            "have equal rewards: nothing is explored.",
            {"metric": "entropy", "entropy": now, "frac_reward_zero_std": alike},
            ("a sampling temperature that is too low", "a starting policy that is already sure"),
            {"temperature": 1.0 if temperature is None or temperature < 1 else None},
            kind="from-the-start",
        )
        return
    if gaining(h):
        return
    suggestion = {"clip_range": 0.28} | lower(h, "base_lr", 3)
    causes = (
        "the policy repeats what already pays and has stopped exploring",
        "a learning rate that is too high",
        "a temperature below 1",
    )
    floor = FLOOR * early
    if now <= floor:
        since = h.since("entropy", lambda v: v <= floor)
        yield Symptom(
            "warning",
            since,
            f"Entropy has fallen from {early:.2g} to {now:.2g} nats a token, below a tenth of its "
            f"start since step {since}, and the reward does not rise.",
            {"metric": "entropy", "early": early, "now": now, "floor": floor},
            causes,
            suggestion,
        )
        return
    recent = h.tail("entropy", 20)
    if len(recent) < 12 or recent.min() <= 0 or trend_z(recent) > -2.33:
        return
    rate = slope(np.log(recent))
    arrival = log(floor / now) / rate if rate < 0 else float("inf")
    if arrival <= LATER * h.n_rows:
        yield Symptom(
            "warning" if arrival <= SOON * h.n_rows else "note",
            h.last_steps("entropy", len(recent))[0],
            f"Entropy falls by {1 - np.exp(rate):.0%} a step and reaches a tenth of its start in "
            f"about {arrival:.0f} steps, while the reward does not rise.",
            {"metric": "entropy", "now": now, "floor": floor, "arrival_in_steps": arrival},
            causes,
            suggestion,
        )


def check_explosion(h: History) -> Iterator[Symptom]:
    """Entropy 3 times its start and at least 0.3 nats above it, while nothing is gained."""
    if h.count("entropy") < 8:
        return
    early, now = h.start("entropy"), h.level("entropy")
    limit = max(EXPLODED * early, early + EXPLODED_LEAST)
    if now < limit or gaining(h):
        return
    since = h.since("entropy", lambda v: v >= limit)
    yield Symptom(
        "critical" if now >= 2 * limit else "warning",
        since,
        f"Entropy has risen from {early:.2g} to {now:.2g} nats a token since step {since}: the "
        "policy becomes random.",
        {"metric": "entropy", "early": early, "now": now},
        (
            "a learning rate that is too high",
            "rewards that are noise, so that every text is pushed down as often as up",
        ),
        lower(h, "base_lr", 5) | higher(h, "kl_coef", 10),
    )


COLLAPSE = Detector(
    "entropy_collapse",
    (("entropy",),),
    check_collapse,
    "rldoctor entropy_collapse: floor 10 %, arrival within 25 % of the run; 0.01 nats [ours]",
)
EXPLOSION = Detector("entropy_explosion", (("entropy",),), check_explosion, "[ours]")
