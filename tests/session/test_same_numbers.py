"""Whatever is looked at, stopped or rewound, a run's numbers are those of the uninterrupted one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.session.runs import (
    STEPS,
    History,
    assert_same_numbers,
    look_at_everything,
    pause_half_way,
    weights,
)
from tests.training.tiny import same_bits
from workbench.config import RunConfig
from workbench.session import Session
from workbench.store import RunFolderError


def test_same_seed_same_numbers_other_seed_other_numbers(
    s: Session, config: RunConfig, history: History, tmp_path: Path
) -> None:
    s.run(STEPS)
    assert_same_numbers(s, history.numbers)
    assert same_bits(weights(s), history.weights[STEPS])
    tokens = [ids.tolist() for ids in s.frame("rollouts")["token_ids"]]
    assert tokens == [ids.tolist() for ids in history.rollouts["token_ids"]]
    with Session(config.with_changes(seed=1), tmp_path / "other") as other:
        other.run(1)
        theirs = [ids.tolist() for ids in other.frame("rollouts")["token_ids"]]
    assert theirs != tokens[: len(theirs)]


def test_each_part_moves_at_each_step(history: History) -> None:
    """Else equal numbers would say little."""
    for before, after in zip(history.weights, history.weights[1:], strict=False):
        moved = {name[0:2].strip() for name in after if not torch.equal(before[name], after[name])}
        assert moved == {"θ", "θ̂", "w"}


def test_looking_between_and_during_steps_changes_nothing(
    s: Session, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_at_everything(s)
    s.run(1)
    look_at_everything(s)
    pause_half_way(s, monkeypatch)
    half_way = weights(s)
    assert same_bits(half_way, history.weights[1])
    look_at_everything(s)
    assert same_bits(weights(s), half_way)
    s.resume()
    s.evaluate(n=1)  # while it runs
    s.pause()
    s.run(STEPS - s.step_number)
    assert_same_numbers(s, history.numbers)
    assert same_bits(weights(s), history.weights[STEPS])


def test_looks_are_no_commands(s: Session) -> None:
    look_at_everything(s)
    assert s.frame("commands").empty


def test_a_change_during_a_pause_half_way_executes_the_step_again(
    s: Session, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    pause_half_way(s, monkeypatch)
    s.save()
    assert s.state == "paused"
    assert s.step_number == 0
    s.run(STEPS)
    assert_same_numbers(s, history.numbers)


def test_rewind_brings_back_the_state_and_the_future(s: Session, history: History) -> None:
    s.run(5)
    s.rewind(3)  # between the snapshots of steps 2 and 4
    assert s.step_number == 3
    assert same_bits(weights(s), history.weights[3])
    assert list(s.frame("metrics")["step"]) == [1, 2, 3]
    s.run(STEPS - 3)
    assert_same_numbers(s, history.numbers)
    assert same_bits(weights(s), history.weights[STEPS])
    whole = s.frame("metrics", history=True)
    assert list(whole["step"][~whole["live"]]) == [4, 5]
    assert s.frame("findings").empty  # steps executed again gave the recorded numbers
    s.rewind(0)
    assert same_bits(weights(s), history.weights[0])
    s.rewind(0)
    assert s.step_number == 0


def test_rewind_refuses_steps_that_are_not_there(s: Session) -> None:
    s.run(1)
    for step in (-1, 2):
        with pytest.raises(RunFolderError, match=f"step {step}"):
            s.rewind(step)
    assert s.step_number == 1
    assert s.state == "idle"


def test_a_rewind_that_fails_leaves_everything_as_it_was(
    s: Session, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    s.run(4)

    def broken(*args: object) -> None:
        raise OSError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr("workbench.training.trainer.measure", broken)
        with pytest.raises(OSError, match="no memory"):
            s.rewind(3)
    assert s.step_number == 4
    assert same_bits(weights(s), history.weights[4])
    s.run(STEPS - 4)
    assert_same_numbers(s, history.numbers)
