"""Rewards that are gamed, noisy or silent."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from workbench.diagnosis.detector import Detector, Severity, Symptom, higher
from workbench.diagnosis.history import History
from workbench.diagnosis.statistics import binomial_error

GAP_WARNING, GAP_CRITICAL = 0.20, 0.40
"""Rise of the reward beyond that of the held-out accuracy. [ours; rldoctor normalises instead]"""
NOISE_WARNING, NOISE_CRITICAL = 0.02, 0.15
"""Share of pairs with the same answer to the same prompt and different rewards. [ours]"""
NOISE_PAIRS = 200
SILENT = 8


def check_hacking(h: History) -> Iterator[Symptom]:
    """The reward has moved 0.2 further up than the held-out accuracy, whose noise is allowed for.

    Either the reward rises, or it holds while the accuracy falls by three standard errors: of the
    mean of two evaluations, taken for one since they have the same prompts.
    """
    accuracy = h.tail("eval/accuracy", 100)
    if len(accuracy) < 2 or h.count("reward") < 4:
        return
    n = h.setting("evaluation_prompts") or 100
    rows = min(5, h.count("reward") // 2)  # the first and the last rows are not to overlap
    early = h.start("reward", rows)
    gained = h.level("reward", rows) - early
    late = accuracy[-2:] if len(accuracy) > 2 else accuracy[-1:]
    learned = float(late.mean() - accuracy[0])
    sigma = float(np.hypot(binomial_error(accuracy[0], n), binomial_error(late.mean(), n)))
    fell = learned <= -3 * sigma
    rose = gained >= GAP_WARNING and len(accuracy) >= 3 and h.count("reward") >= 10
    held = h.level("reward", rows) >= max(early, h.head("reward", 1)[0])
    gap = gained - learned
    if not (rose or (fell and held)) or gap < GAP_WARNING + 2 * sigma:
        return
    if rose:
        since = h.since("reward", lambda v: v - early >= GAP_WARNING)
    else:
        since = h.since("eval/accuracy", lambda v: v < accuracy[0])
    severity: Severity = "critical" if fell or gap >= GAP_CRITICAL + 2 * sigma else "warning"
    yield Symptom(
        severity,
        since,
        (f"The reward rose by {gained:.2f}" if rose else "The reward did not fall")
        + " while the held-out accuracy "
        + ("fell" if learned < 0 else "rose")
        + f" by {abs(learned):.2f}: the policy earns rewards without solving the task.",
        {
            "reward_gained": gained,
            "accuracy_gained": learned,
            "noise": 2 * sigma,
            "metric": "reward",
        },
        (
            "the reward accepts texts that do not solve the task: read the best-paid rollouts",
            "training prompts are remembered, held-out ones are not solved",
        ),
        higher(h, "kl_coef", 10) | {"verifier_fault": "none"},
    )


def check_noisy(h: History) -> Iterator[Symptom]:
    """The same answer to the same prompt earns different rewards."""
    share, pairs = h.tail("verifier/inconsistent", 10), h.tail("verifier/pairs", 10)
    if len(share) < 3 or pairs.sum() < NOISE_PAIRS:
        return
    inconsistent = float((share * pairs).sum() / pairs.sum())
    if inconsistent < NOISE_WARNING:
        return
    flip = (1 - np.sqrt(max(0.0, 1 - 2 * inconsistent))) / 2  # a pair differs with 2p(1 − p)
    since = h.since("verifier/inconsistent", lambda v: v >= NOISE_WARNING)
    yield Symptom(
        "critical" if inconsistent >= NOISE_CRITICAL else "warning",
        since,
        f"{inconsistent:.0%} of the pairs of rollouts with the same answer to the same prompt "
        f"earn different rewards, as if one in {1 / max(flip, 1e-9):.0f} were flipped.",
        {
            "metric": "verifier/inconsistent",
            "share": inconsistent,
            "pairs": int(pairs.sum()),
            "flip_probability": float(flip),
        },
        (
            "a verifier that is random, times out or is a model",
            "a reward that looks at more than the answer",
        ),
        {"reward_flip": 0.0} | higher(h, "group_size", 2),
    )


def check_silent(h: History) -> Iterator[Symptom]:
    """Every reward is the same: of 8 steps none has told two rollouts apart."""
    rewards, deviations = h.tail("reward", SILENT), h.tail("reward_std", SILENT)
    if len(rewards) < SILENT or np.ptp(rewards) > 0 or deviations.any():
        return
    value = float(rewards[0])
    perfect = value == 1.0 and not h.tail("eval/accuracy", 2).min(initial=1.0) < 0.9
    held_out = h.level("eval/accuracy", 1)
    also = (
        f" The held-out accuracy is {held_out:.0%}: the verifier is broken."
        if (value == 0 and held_out >= 0.05)
        else ""
    )
    yield Symptom(
        "note" if perfect else "critical",
        h.since("reward", lambda v: v == value, misses=0),
        f"Every reward has been {value:g} for {SILENT} steps and more: nothing can be learned "
        f"from them.{also}",
        {"metric": "reward", "value": value, "accuracy": held_out},
        (
            "the verifier fails and gives the same reward to everything",
            "the answer's pattern does not fit what the model writes",
            "the task is out of reach, or mastered",
        ),
        {"answer_pattern": None, "verifier_fault": "none"},
    )


HACKING = Detector(
    "reward_hacking",
    (("reward",), ("eval/accuracy",)),
    check_hacking,
    "[ours] 0.2 above noise; the signature is rldoctor's reward_hacking",
    at_once=True,
)
NOISY = Detector(
    "verifier_noisy",
    (("verifier/inconsistent",),),
    check_noisy,
    "[ours]: a verifier is a function of prompt and answer; BRIDGE studies flips of 20 %",
)
SILENT_REWARD = Detector(
    "verifier_silent", (("reward",), ("reward_std",)), check_silent, "[ours]: 8 equal steps"
)
