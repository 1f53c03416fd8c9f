"""Demonstrations that the run's own verifier rejects: SFT teaches what RL punishes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from workbench.diagnosis.detector import Detector, Symptom
from workbench.diagnosis.history import History
from workbench.records import DemonstrationRow

if TYPE_CHECKING:
    from workbench.tasks.problem import Demonstration, Task

WARNING, CRITICAL = 0.5, 0.8
"""Share of the demonstrations of 8 steps. [ours]"""


class Judge:
    """What the task's verifier says of demonstrations, each asked about once."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._known: dict[str, Demonstration] = {}
        self._right: dict[str, bool] = {}

    def signs(self, rows: Iterable[DemonstrationRow]) -> dict[str, float]:
        """demonstrations/rejected: share of a step's demonstrations that would earn nothing.

        Left out where none has an answer to check.
        """
        from workbench.tasks.problem import Problem

        ids = [row.demonstration_id for row in rows]
        if ids and not self._known:
            self._known = {d.id: d for d in self.task.demonstrations() if d.answer}
        for i in ids:
            if i in self._known and i not in self._right:
                d = self._known[i]
                reward = self.task.reward(d.solution, Problem(d.id, d.prompt, d.answer))
                self._right[i] = reward > 0
        judged = [self._right[i] for i in ids if i in self._right]
        return {"demonstrations/rejected": 1 - sum(judged) / len(judged)} if judged else {}


def check(h: History) -> Iterator[Symptom]:
    """Half of the demonstrations of the last 8 steps."""
    name = "demonstrations/rejected"
    share = float(h.tail(name, 8).mean())
    if h.count(name) < 8 or share < WARNING:
        return
    since = h.since(name, lambda v: v >= WARNING)
    yield Symptom(
        "critical" if share >= CRITICAL else "warning",
        since,
        f"The verifier rejects {share:.0%} of the demonstrations since step {since}: SFT teaches "
        "what RL punishes.",
        {"metric": name, "share": share},
        (
            "demonstrations with wrong answers, or of other problems",
            "answers written in a form that the verifier does not read",
        ),
        {"rl_weight": 1.0, "set_aside": None},
    )


DETECTOR = Detector(
    "demonstrations_rejected", (("demonstrations/rejected",),), check, "[ours]: 50 %, 80 %"
)
