"""The ledger against the same sums in plain Python."""

from __future__ import annotations

import math
from random import Random
from statistics import fmean, stdev

import pandas as pd
import pytest

from workbench.probes.ledger import COLUMNS, ledger, suspects
from workbench.records import AnswerRow

NAN = math.nan


def visit(name: str, step: int, alignment: float, cosine: float = 0.1, **values: object) -> dict:
    """One row of the frame "demonstrations"."""
    row = {
        "step": step,
        "demonstration_id": name,
        "prompt": f"{name}?",
        "solution": "42",
        "quality": "clean",
        "loss": 1.0,
        "n_tokens": 3,
        "rl_alignment": alignment,
        "rl_alignment_coordinator": NAN,
        "grad_norm": 2.0,
        "rl_cosine": cosine,
    }
    return row | values


def test_sums_means_and_errors_over_visits() -> None:
    draw = Random(0)
    rows = [
        visit(
            f"d{step % 3}",
            step,
            draw.gauss(0, 1),
            draw.gauss(0, 1),
            loss=draw.random(),
            grad_norm=draw.random(),
        )
        for step in range(1, 15)
    ]
    made = ledger(pd.DataFrame(Random(1).sample(rows, len(rows))))  # in any order
    assert tuple(made) == COLUMNS and len(made) == 3
    for found in made.itertuples():
        mine = [row for row in rows if row["demonstration_id"] == found.demonstration_id]
        alignments = [row["rl_alignment"] for row in mine]
        assert found.visits == found.measured == len(mine)
        assert found.last_step == mine[-1]["step"]
        assert found.contribution == pytest.approx(sum(alignments))
        assert found.contribution_mean == pytest.approx(fmean(alignments))
        assert found.standard_error == pytest.approx(stdev(alignments) / len(mine) ** 0.5)
        assert found.cosine == pytest.approx(fmean(row["rl_cosine"] for row in mine))
        assert found.grad_norm == pytest.approx(fmean(row["grad_norm"] for row in mine))
        assert found.loss == mine[-1]["loss"]
        assert found.loss_drop == pytest.approx(mine[0]["loss"] - mine[-1]["loss"])


def test_unmeasured_visits_are_skipped_and_a_single_visit_has_no_error() -> None:
    made = ledger(
        pd.DataFrame(
            [
                visit("some", 1, NAN, NAN, grad_norm=NAN, loss=3.0),
                visit("some", 2, 0.5, 0.3, grad_norm=4.0),
                visit("some", 3, NAN, NAN, grad_norm=NAN, loss=2.0),
                visit("once", 3, -0.5, -0.1),
                visit("never", 3, NAN, NAN, grad_norm=NAN),
            ]
        )
    ).set_index("demonstration_id")
    some, once, never = made.loc["some"], made.loc["once"], made.loc["never"]
    assert (some.visits, some.measured, some.contribution, some.cosine) == (3, 1, 0.5, 0.3)
    assert (some.grad_norm, some.loss, some.loss_drop) == (4.0, 2.0, 1.0)
    assert math.isnan(some.standard_error) and math.isnan(once.standard_error)
    assert once.contribution == -0.5 and math.isnan(once.loss_drop)
    assert (never.visits, never.measured) == (1, 0)
    for value in (never.contribution, never.cosine, never.score):
        assert math.isnan(value)
    assert list(made.index) == ["once", "some", "never"]  # no score, no suspicion


def test_the_most_suspect_come_first_and_equals_share_a_rank() -> None:
    cosines = {"a": 0.2, "b": -0.4, "c": 0.2, "d": 0.9}
    made = ledger(pd.DataFrame([visit(name, 1, 1.0, c) for name, c in cosines.items()]))
    assert list(made["demonstration_id"]) == ["b", "a", "c", "d"]
    assert list(made["rank"]) == [1, 2, 2, 4]


def answered(name: str, disagreement: float) -> AnswerRow:
    return AnswerRow(name, "42", 0.0, "", 0.0, disagreement, 8)


def test_what_the_policys_rollouts_contradict_comes_first() -> None:
    cosines = {"a": 0.2, "b": -0.4, "c": 0.1, "d": 0.9, "e": 0.5, "f": 0.6}
    votes = {"a": -1.0, "b": -1.0, "c": NAN, "d": 0.75, "f": 0.75}  # of c nothing is known, like e
    made = ledger(
        pd.DataFrame([visit(name, 1, 1.0, c) for name, c in cosines.items()]),
        [answered(name, value) for name, value in votes.items()],
    )
    assert list(made["demonstration_id"]) == ["f", "d", "c", "e", "b", "a"]
    assert list(made["rank"]) == [1, 2, 3, 4, 5, 6]
    shown = made.set_index("demonstration_id")["disagreement"]
    assert shown["f"] == 0.75 and math.isnan(shown["c"]) and math.isnan(shown["e"])
    assert list(suspects(made, n=2)["demonstration_id"]) == ["f", "d"]


def test_an_answer_is_enough_to_be_a_suspect() -> None:
    rows = [visit("never measured", 1, NAN, NAN), visit("nothing", 1, NAN, NAN)]
    made = ledger(pd.DataFrame(rows), [answered("never measured", 1.0)])
    assert list(suspects(made, n=9)["demonstration_id"]) == ["never measured"]


def test_suspects_by_number_and_by_score() -> None:
    rows = [visit(f"d{i}", 1, 1.0, -0.1 * i) for i in range(5)] + [visit("none", 1, NAN, NAN)]
    made = ledger(pd.DataFrame(rows))

    def names(**limits: float) -> list[str]:
        return list(suspects(made, **limits)["demonstration_id"])

    bar = made.set_index("demonstration_id").loc["d2", "score"]
    assert names(n=2) == ["d4", "d3"]
    assert names(n=99) == ["d4", "d3", "d2", "d1", "d0"]
    assert names(threshold=bar) == ["d4", "d3", "d2"]
    assert names(n=1, threshold=bar) == ["d4"]
    assert names(threshold=99.0) == []


def test_the_hidden_tag_changes_nothing_but_its_own_column() -> None:
    rows = [visit(f"d{i}", 1, 0.1 * i, 0.1 * i) for i in range(4)]
    plain = ledger(pd.DataFrame(rows))
    tagged = ledger(pd.DataFrame([row | {"quality": "wrong_step"} for row in rows]))
    assert (tagged["quality"] == "wrong_step").all()
    pd.testing.assert_frame_equal(tagged.drop(columns="quality"), plain.drop(columns="quality"))


def test_a_run_without_demonstrations_has_an_empty_ledger() -> None:
    empty = ledger(pd.DataFrame([visit("d", 1, 0.0)]).iloc[:0])
    assert tuple(empty) == COLUMNS and empty.empty
    assert suspects(empty, n=3).empty
