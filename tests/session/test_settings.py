"""Settings changed during a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.session.runs import Gate, in_thread, numbers, until, weights
from tests.training.tiny import same_bits
from workbench.config import ConfigError, RunConfig
from workbench.session import Session


@pytest.fixture(scope="module")
def untouched(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """For settings that are refused."""
    with Session(config, tmp_path_factory.mktemp("untouched") / "run") as session:
        yield session


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bass_lr": 1e-4}, "bass_lr: no such setting; did you mean 'base_lr'"),
        ({"name": 1}, "name: no such setting"),
        ({"rl_weight": 1.5}, "rl_weight: .*less than or equal to 1"),
        ({"rl_weight": float("nan")}, "rl_weight"),
        ({"base_lr": "quick"}, "base_lr: .*valid number"),
        ({"group_size": 4}, "group_size: cannot change during a run"),
        ({"seed": 1}, "seed: cannot change during a run"),
        ({"kind": "gym"}, "kind: cannot change during a run"),
        ({"rl_weight": 0.1, "base_lr": -1.0}, "base_lr"),
    ],
)
def test_set_says_what_is_wrong_and_changes_nothing(
    untouched: Session, config: RunConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        untouched.set(**changes)
    assert untouched.config == config
    assert untouched.state == "idle"


def test_set_holds_from_the_next_step_and_through_rewind_and_resume(s: Session) -> None:
    s.run(2)
    s.set(base_lr=np.float32(5e-4), rl_weight=0.75)
    assert s.config.get("base_lr") == pytest.approx(5e-4)
    s.run(2)
    at_4 = weights(s)
    s.set(rl_weight=0.25)
    s.run(1)
    expected = numbers(s)
    assert list(expected["rl_weight"]) == [0.5, 0.5, 0.75, 0.75, 0.25]
    at_5 = weights(s)
    s.rewind(3)
    assert (s.config.get("base_lr"), s.config.get("rl_weight")) == (pytest.approx(5e-4), 0.75)
    s.run(1)
    assert same_bits(weights(s), at_4)
    s.rewind(1)
    assert (s.config.get("base_lr"), s.config.get("rl_weight")) == (1e-3, 0.5)
    s.run(1)
    s.set(base_lr=np.float32(5e-4), rl_weight=0.75)
    s.run(2)
    s.set(rl_weight=0.25)
    s.close()
    with Session.resume(s.run_dir) as again:
        assert again.config.get("rl_weight") == 0.25
        again.run(1)
        assert same_bits(weights(again), at_5)
        pd.testing.assert_frame_equal(numbers(again), expected, check_exact=True)
        commands = again.frame("commands")
        assert list(commands["step"][commands["name"] == "set"]) == [2, 4, 2, 4]
        assert again.frame("findings").empty


def test_set_during_a_step_waits_for_the_next(s: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        gate = Gate(patch, "trainer.measure")
        s.start(2)
        gate.wait()
        setting = in_thread(lambda: s.set(rl_weight=0.9))
        until(s, lambda: bool(s._worker.queue))
        gate.open()
        setting.join(60)
        assert s.wait(60)
    assert list(s.frame("metrics")["rl_weight"]) == [0.5, 0.9]


def test_commands_are_recorded_with_their_outcome(s: Session) -> None:
    s.set(rl_weight=0.6)
    with pytest.raises(ConfigError):
        s.set(rl_weight=7)
    commands = s.frame("commands")
    assert list(commands["arguments"]) == [{"rl_weight": 0.6}, {"rl_weight": 7}]
    assert commands["outcome"][0] == "done"
    assert commands["outcome"][1].startswith("ConfigError: training.rl_weight: Input should be")
