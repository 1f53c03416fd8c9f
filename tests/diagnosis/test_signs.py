"""What is read from rollouts, against counts made by hand."""

from __future__ import annotations

import math
from dataclasses import asdict

import pandas as pd
import pytest

from workbench.diagnosis import Judge, carriers, signs
from workbench.diagnosis.signs import loops
from workbench.records import DemonstrationRow, RolloutRow
from workbench.tasks.problem import Demonstration, Problem


def rollout(
    sequence: int, prompt: str, answer: str, reward: float, **changes: object
) -> RolloutRow:
    values: dict[str, object] = {
        "step": 1,
        "purpose": "train",
        "policy": "joint",
        "sequence": sequence,
        "prompt_id": prompt,
        "prompt": prompt,
        "completion": answer,
        "answer": "7",
        "extracted": answer,
        "reward": reward,
        "correct": math.nan,  # nothing may read it
        "advantage": 1.0 if reward else -1.0,
        "finished": True,
        "token_ids": [5, 6, 7],
        "tokens": ["a", "b", "c"],
        "sampling_logprob": [-0.1, -0.2, -0.3],
    }
    return RolloutRow(**{**values, **changes})  # type: ignore[arg-type]


def test_groups_are_split_and_equal_answers_compared_by_hand():
    rows = [
        *(rollout(i, "easy", "7", 1.0) for i in range(3)),
        *(rollout(3 + i, "hard", "", 0.0) for i in range(3)),
        rollout(6, "mixed", "7", 1.0),
        rollout(7, "mixed", "7", 0.0),  # the same answer, paid differently
        rollout(8, "mixed", "8", 0.0),
    ]
    found = signs(rows)
    assert found["groups/too_easy"] == found["groups/too_hard"] == pytest.approx(1 / 3)
    assert found["completions/unanswered"] == pytest.approx(3 / 9)
    assert found["verifier/pairs"] == 3 + 1  # three pairs of "easy", one of "mixed"; "" is none
    assert found["verifier/inconsistent"] == pytest.approx(1 / 4)
    assert carriers("verifier_noisy", pd.DataFrame([asdict(row) for row in rows])) == [6, 7]


def test_ratios_are_those_of_the_log_probs():
    row = rollout(
        0,
        "p",
        "7",
        0.0,
        logprob=[-0.1, -0.2, -0.5],
        baseline_logprob=[-0.1, -0.2 + math.log(0.5), -0.5 + math.log(1.5)],
        reference_logprob=[-1.0, -2.0, -3.0],
    )
    found = signs([row], clip_range=0.2)
    assert found["sampling/sampling_logp_difference/mean"] == pytest.approx(0.2 / 3)
    assert found["sampling/sampling_logp_difference/max"] == pytest.approx(0.2)
    assert found["baseline/clip_ratio_low"] == pytest.approx(1 / 3)  # 0.5 < 0.8 where A < 0
    assert found["baseline/clip_ratio_high"] == 0.0  # 1.5 > 1.2, but A < 0
    assert found["baseline/log_ratio_max"] == pytest.approx(math.log(2))
    assert found["completions/reference_nll"] == pytest.approx(2.0)


def test_without_training_rollouts_there_are_no_signs():
    assert signs([]) == {}
    assert signs([rollout(0, "p", "7", 1.0, purpose="paired")]) == {}


@pytest.mark.parametrize(
    ("ids", "looping"),
    [
        ([9, 9, 9, 4] + [1, 2, 3] * 5, True),
        ([1, 2, 3] * 5 + [99], True),  # an end-of-text token behind it
        ([7] * 13, True),
        ([7] * 9, False),
        (list(range(40)), False),
        ([1, 2, 3] * 3, False),
        ([1, 2, 3] * 5 + [4, 5, 6], False),  # it got out of the loop
    ],
)
def test_a_loop_is_a_unit_repeated_to_the_end(ids: list[int], looping: bool):
    assert loops(ids) is looping


def test_demonstrations_are_judged_by_the_task_once_each():
    class Sums:
        asked = 0

        def demonstrations(self) -> list[Demonstration]:
            return [
                Demonstration("right", "1+1", "#2", "2"),
                Demonstration("wrong", "1+1", "#3", "2"),
                Demonstration("open", "write", "a poem", ""),
            ]

        def reward(self, completion: str, problem: Problem) -> float:
            self.asked += 1
            return float(completion == f"#{problem.answer}")

    def row(name: str) -> DemonstrationRow:
        return DemonstrationRow(1, name, "", "", "", 0.0, 1, *[math.nan] * 4)

    task = Sums()
    judge = Judge(task)  # type: ignore[arg-type]
    assert judge.signs([row("right"), row("wrong"), row("wrong"), row("open")]) == {
        "demonstrations/rejected": pytest.approx(2 / 3)
    }
    assert judge.signs([row("open")]) == judge.signs([]) == {}
    assert judge.signs([row("right")]) == {"demonstrations/rejected": 0.0}
    assert task.asked == 2
