"""Votes on a demonstration's answer, against counting by hand and against plain draws."""

from __future__ import annotations

from math import isnan

import pytest

from workbench.policy import Policy
from workbench.probes.agreement import answer_row, answer_rows
from workbench.records import AnswerRow
from workbench.sampling import Noise, sample
from workbench.tasks.problem import Demonstration, Problem, Split


def vote(own: str | None, *answers: str | None) -> AnswerRow:
    return answer_row("d", own, answers)


@pytest.mark.parametrize(
    ("own", "answers", "agree", "other", "disagreement"),
    [
        ("7", ["7", "7", "7", "7"], 1, 0, -1),
        ("8", ["7", "7", "7", "7"], 0, 1, 1),
        ("8", ["7", "7", "7", "8"], 0.25, 0.75, 0.5),
        ("8", ["1", "2", "3", "4"], 0, 0.25, 0.25),  # the policy is lost: little evidence
        ("8", [None, None, None, None], 0, 0, 0),  # none at all
        ("8", ["7", None, None, None], 0, 0.25, 0.25),
        ("1,000", ["1000.0", "1000", "12", "12"], 0.5, 0.5, 0),  # numbers as numbers
        ("8", ["1,000", "1000.0", "2", "3"], 0, 0.5, 0.5),
    ],
)
def test_votes_are_counted(
    own: str, answers: list[str | None], agree: float, other: float, disagreement: float
) -> None:
    found = vote(own, *answers)
    assert (found.agree, found.other, found.disagreement) == (agree, other, disagreement)
    assert (found.answer, found.n_rollouts) == (own, 4)


def test_the_most_frequent_other_answer_is_named() -> None:
    assert vote("8", "7", "6", "7", "8").other_answer == "7"
    assert vote("8", "8", "8", None).other_answer == ""


def test_a_solution_without_an_answer_cannot_be_contradicted() -> None:
    found = vote(None, "7", "7", None)
    assert isnan(found.disagreement)
    assert (found.answer, found.agree, found.other, found.other_answer) == ("", 0, 2 / 3, "7")


class Remainder:
    """The answer of a text is the sum of its characters' codes modulo 3; of an empty one none."""

    def problems(self, split: Split) -> list[Problem]:
        return []

    def demonstrations(self) -> list[Demonstration]:
        return [Demonstration(f"d{i}", f"{i}+{i}=?", "12=7", "") for i in range(3)]

    def reward(self, completion: str, problem: Problem) -> float:
        raise AssertionError("what is right is not asked for")

    def extract(self, completion: str) -> str | None:
        return str(sum(map(ord, completion)) % 3) if completion else None


@pytest.mark.parametrize("name", ["joint", "baseline"])
def test_the_policy_asked_votes_on_each_prompt(policy: Policy, name: str) -> None:
    task, k = Remainder(), 4
    shown = task.demonstrations()
    found = answer_rows(
        policy,
        name,
        task,
        shown,
        rollouts=k,
        noise=Noise(3, 0, "answers"),
        max_new_tokens=8,
        temperature=0.9,
    )
    assert [row.demonstration_id for row in found] == ["d0", "d1", "d2"]
    for i, (row, demonstration) in enumerate(zip(found, shown, strict=True)):
        done = sample(
            policy.of(name),
            policy.tokenizer,
            [policy.encode_prompt(demonstration.prompt)] * k,
            noise=Noise(3, 0, "answers"),
            sequences=range(i * k, i * k + k),
            end_ids=policy.end_ids,
            max_new_tokens=8,
            temperature=0.9,
            environments=None,
        )
        assert row == answer_row(
            demonstration.id, task.extract("12=7"), [task.extract(t) for t in done.texts]
        )
    assert len({(row.agree, row.other_answer) for row in found}) > 1
