"""Groups whose rollouts all earn the same: no advantage, no gradient, rollouts paid for nothing."""

from __future__ import annotations

from collections.abc import Iterator

from workbench.diagnosis.detector import Detector, Severity, Symptom, higher
from workbench.diagnosis.history import History
from workbench.diagnosis.learning import gaining
from workbench.diagnosis.statistics import binomial_error

NOTE, WARNING, CRITICAL = 0.50, 0.75, 0.90
"""0.5 and 0.75: [rldoctor advantage_collapse], one severity lower: a run that has hard prompts and
learns is healthy. 0.9: [ours]"""
EASY, HARD = 0.85, 0.15
"""Mean reward that tells the two apart where the split was not measured. [rldoctor]"""


def check(h: History) -> Iterator[Symptom]:
    """More than half of the groups, split into too easy (a note: it is success) and too hard.

    Each limit is to be passed by two standard errors of the share over 8 steps. A run that learns
    from the rest is told in a note, unless there is no rest.
    """
    name = "frac_reward_zero_std"
    alike = h.level(name, 8)
    error = 2 * binomial_error(alike, 8 * (h.setting("prompts_per_step") or 10_000))
    if h.count(name) < 8 or alike < NOTE + error:
        return
    easy, hard = h.level("groups/too_easy", 8), h.level("groups/too_hard", 8)
    reward = h.level("reward", 8)
    if "groups/too_easy" not in h:
        easy, hard = (alike, 0.0) if reward >= EASY else (0.0, alike)
        if HARD < reward < EASY:
            easy = hard = alike / 2
    since = h.since(name, lambda v: v >= NOTE)
    severity: Severity = "warning" if alike >= WARNING + error and not gaining(h) else "note"
    if alike >= CRITICAL + error:
        severity = "critical"
    if easy >= 2 * hard:
        kind, severity = "too-easy", "note"
        message = "nearly always solved: most groups are all right"
        causes: tuple[str, ...] = ("the model has outgrown these prompts",)
        suggestion: dict[str, object] = {"terms": None, "temperature": None}
    elif hard >= 2 * easy:
        kind = "too-hard"
        message = "hardly ever solved: most groups are all wrong"
        causes = (
            "the prompts are too hard for this model",
            "the reward does not recognise right answers",
            "completions end before they reach an answer",
        )
        suggestion = {**higher(h, "group_size", 2), "temperature": 1.0}
    else:
        kind = "alike"
        message = "either always or never solved, with little between"
        causes = ("rollouts of a prompt are nearly copies: the temperature is too low",)
        suggestion = {"temperature": 1.0, **higher(h, "group_size", 2)}
    yield Symptom(
        severity,
        since,
        f"{alike:.0%} of the groups have equal rewards since step {since} and give no gradient: "
        f"the prompts are {message}.",
        {"metric": name, "share": alike, "too_easy": easy, "too_hard": hard, "reward": reward},
        causes,
        suggestion,
        kind=kind,
    )


DETECTOR = Detector(
    "zero_variance_groups",
    (("frac_reward_zero_std",),),
    check,
    "rldoctor advantage_collapse: 50 %, 75 %, one severity lower; 90 % [ours]",
)
