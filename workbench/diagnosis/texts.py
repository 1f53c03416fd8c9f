"""Completions that loop, or are gibberish to the starting policy."""

from __future__ import annotations

from collections.abc import Iterator

from workbench.diagnosis.detector import Detector, Symptom, higher, lower
from workbench.diagnosis.history import History

LOOPING_WARNING, LOOPING_CRITICAL = 0.10, 0.50
"""Share of completions that end in a loop (`signs.loops`). [ours]"""
GIBBERISH_RATIO, GIBBERISH_LEAST = 3.0, 1.0
"""Times the early surprise, and nats a token above it. [ours]"""
UNANSWERED_WARNING, UNANSWERED_CRITICAL = 0.3, 0.7
"""Share of completions without an answer, above the early share. [ours]"""


def check_repetition(h: History) -> Iterator[Symptom]:
    """One completion in ten ends in a loop."""
    name = "completions/repetition"
    share = h.level(name)
    if h.count(name) < 8 or share < LOOPING_WARNING:
        return
    since = h.since(name, lambda v: v >= LOOPING_WARNING)
    yield Symptom(
        "critical" if share >= LOOPING_CRITICAL else "warning",
        since,
        f"{share:.0%} of the completions end in a loop since step {since}.",
        {"metric": name, "share": share},
        ("a learning rate that is too high", "a reward that pays for length or for any output"),
        lower(h, "base_lr", 3) | higher(h, "kl_coef", 10),
    )


def check_gibberish(h: History) -> Iterator[Symptom]:
    """Texts the starting policy finds three times as surprising, or that hold no answer."""
    name = "completions/reference_nll"
    if h.count(name) >= 8:
        early, now = h.start(name), h.level(name)
        limit = max(GIBBERISH_RATIO * early, early + GIBBERISH_LEAST)
        if now >= limit:
            since = h.since(name, lambda v: v >= limit)
            yield Symptom(
                "warning",
                since,
                f"The starting policy finds the completions {now:.1f} nats a token surprising, "
                f"{early:.1f} at the start: they have become unlike its language (step {since}).",
                {"metric": name, "early": early, "now": now},
                ("a learning rate that is too high", "no KL that holds the policy"),
                lower(h, "base_lr", 5) | higher(h, "kl_coef", 10),
            )
    name = "completions/unanswered"
    if h.count(name) >= 8:
        early, now = h.start(name), h.level(name)
        if now >= early + UNANSWERED_WARNING:
            since = h.since(name, lambda v: v >= early + UNANSWERED_WARNING)
            yield Symptom(
                "critical" if now >= UNANSWERED_CRITICAL else "warning",
                since,
                f"{now:.0%} of the completions hold no answer, {early:.0%} did at the start.",
                {"metric": name, "early": early, "now": now},
                (
                    "the policy has lost the answer's form",
                    "the reward pays for texts without an answer",
                ),
                lower(h, "base_lr", 5) | higher(h, "kl_coef", 10),
                kind="unanswered",
            )
        elif h.level(name, 8) >= 0.95 and early >= 0.95:
            since = h.since(name, lambda v: v >= 0.95)
            yield Symptom(
                "critical",
                since,
                f"No answer is found in {h.level(name, 8):.0%} of the completions since step "
                f"{since}.",
                {"metric": name, "early": early, "now": now},
                (
                    "the answer's pattern does not fit what the model writes",
                    "completions are cut off before the answer",
                ),
                {"answer_pattern": None} | higher(h, "max_new_tokens", 2),
                kind="unanswered",
            )


REPETITION = Detector(
    "repetition",
    (("completions/repetition",),),
    check_repetition,
    "[ours]; prime-rl's filter looks for 3,000 sure tokens (MiniMax-M1, arXiv 2506.13585, 3.2)",
)
GIBBERISH = Detector(
    "gibberish",
    (("completions/reference_nll", "completions/unanswered"),),
    check_gibberish,
    "[ours], after prime-rl's filter of rare tokens (arXiv 2510.02387, 5.2)",
)
