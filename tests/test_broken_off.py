"""Long calls can be broken off: by Ctrl-C, by a pause, by closing. Then all is as it was before."""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.training.tiny import save_tiny_llama, small_config
from workbench import Session
from workbench.config import RunConfig
from workbench.training.trainer import Trainer
from workbench.worker import SessionError


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Only step 0 and the fork's own step have snapshots: going back executes steps again."""
    folder = save_tiny_llama(tmp_path_factory.mktemp("tiny"))
    return small_config(folder, snapshot_every=50, reward_flip=0.4, n_prompts=12, terms=(3,))


@pytest.fixture
def s(config: RunConfig, tmp_path: Path) -> Iterator[Session]:
    with Session(config, tmp_path / "run") as session:
        session.run(4)
        yield session


def numbers(s: Session) -> pd.DataFrame:
    frame = s.frame("metrics")
    return frame[[name for name in frame if not name.startswith(("seconds/", "snapshot/"))]]


class Held:
    """Holds the worker before a step until `release`; counts the steps begun."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int) -> None:
        self.there, self._go, self.begun = threading.Event(), threading.Event(), 0
        original = Trainer.step

        def step(trainer: Trainer, number: int, *rest: Any) -> Any:
            self.begun += 1
            if number == at:
                self.there.set()
                assert self._go.wait(60)
            return original(trainer, number, *rest)

        patch.setattr(Trainer, "step", step)

    def then(self, act: Callable[[], None]) -> threading.Thread:
        """Once the worker is there, act, and let it go on."""

        def work() -> None:
            assert self.there.wait(60)
            act()
            self._go.set()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread


LONG: dict[str, Callable[[Session, Path], Any]] = {
    "rewind": lambda s, folder: s.rewind(3),
    "fork": lambda s, folder: s.fork(folder, step=3),
}


def until_marked(s: Session) -> None:
    """Wait until the call under way is to be broken off."""
    for _ in range(600):
        current = s._worker.queue.current
        if current is not None and current.broken_by:
            return
        time.sleep(0.02)
    raise AssertionError("nobody broke the call off")


@pytest.mark.parametrize("name", LONG)
def test_a_pause_breaks_off_what_executes_steps_again(
    s: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before, version = numbers(s), s.step_number
    with monkeypatch.context() as patch:
        held = Held(patch, at=2)
        paused = threading.Event()

        def press() -> None:
            threading.Thread(target=lambda: (s.pause(), paused.set()), daemon=True).start()
            until_marked(s)
            assert s.progress.doing == f"{name}: step 1 of 3 again, update"

        pressing = held.then(press)
        with pytest.raises(SessionError, match=f"{name}: broken off by a pause; nothing changed"):
            LONG[name](s, tmp_path / "fork")
        pressing.join(60)
        assert paused.wait(60)
    assert held.begun == 2
    assert (s.step_number, s.state, s.progress.doing) == (version, "idle", "")
    assert not (tmp_path / "fork").exists()
    pd.testing.assert_frame_equal(numbers(s), before)
    s.rewind(3)  # the state is whole: the steps give the same numbers again
    s.run(1)
    pd.testing.assert_frame_equal(numbers(s), before, check_exact=True)
    assert s.frame("findings").empty


@pytest.mark.parametrize("name", LONG)
def test_ctrl_c_breaks_off_what_executes_steps_again(
    s: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = numbers(s)
    with monkeypatch.context() as patch:
        held = Held(patch, at=2)

        def press() -> None:
            _thread.interrupt_main()
            until_marked(s)

        pressing = held.then(press)
        with pytest.raises(KeyboardInterrupt):
            LONG[name](s, tmp_path / "fork")
        pressing.join(60)
    assert held.begun == 2
    assert not (tmp_path / "fork").exists()
    outcome = s.frame("commands").iloc[-1]
    assert (outcome["name"], outcome["outcome"].split(":")[0]) == (name, "BrokenOff")
    s.run(1)
    s.rewind(4)
    pd.testing.assert_frame_equal(numbers(s), before, check_exact=True)
    assert s.frame("findings").empty


def test_ctrl_c_breaks_off_opening_a_run_and_frees_it(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session(config, tmp_path / "run") as s:
        s.run(3)
        s.save()
        before = numbers(s)
    for later in (tmp_path / "run" / "snapshots").glob("step-*3"):
        later.rename(tmp_path / "away")  # as after a crash: the last snapshot is that of step 0
    with monkeypatch.context() as patch:
        held = Held(patch, at=2)
        pressing = held.then(_thread.interrupt_main)
        with pytest.raises(KeyboardInterrupt):
            Session.open(tmp_path / "run")
        pressing.join(60)
    with Session.open(tmp_path / "run") as s:
        pd.testing.assert_frame_equal(numbers(s), before)
        assert s.step_number == 3


LOOKS: dict[str, Callable[[Session], Any]] = {
    "sample": lambda s: s.sample(["1+2=?"]),
    "dose_response": lambda s: s.dose_response([0.5, 1.5], n=2, rollouts=2),
    "coordinator_ablation": lambda s: s.coordinator_ablation(n=2, rollouts=2),
    "paired_gain": lambda s: s.paired_gain(rollouts=2),
    "evaluate": lambda s: s.evaluate("train", n=2),
    "evaluate a part": lambda s: s.evaluate("train", policy="reference", n=2),
    "counterfactual": lambda s: s.counterfactual(4, 0, snapshot_step=0),
}


@pytest.fixture(scope="module")
def undisturbed(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Numbers of a run that nobody looks at."""
    with Session(config, tmp_path_factory.mktemp("undisturbed") / "run") as session:
        session.run(4 + len(LOOKS))
        return numbers(session)


@pytest.fixture(scope="module")
def looked_at(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """The same run, a step further after each look. What stands in for `check` is called, too."""
    with Session(config, tmp_path_factory.mktemp("looked_at") / "run") as session:
        session.run(4)
        queue = session._worker.queue
        session._worker.engine.policy.before_forward(lambda: queue.check())
        yield session


@pytest.mark.parametrize("name", LOOKS)
def test_every_look_ends_at_the_next_forward_pass(
    looked_at: Session, undisturbed: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Broken off before its third forward pass; the run is none the wiser."""
    s, queue, passes = looked_at, looked_at._worker.queue, 0
    original = queue.check

    def third() -> None:
        nonlocal passes
        if queue.current is not None:
            passes += 1
            if passes == 3:
                queue.current.broken_by = "a pause"
        original()

    monkeypatch.setattr(queue, "check", third)
    with pytest.raises(SessionError, match=f"{name.split()[0]}: broken off by a pause"):
        LOOKS[name](s)
    assert passes == 3
    LOOKS[name](s)  # and can be asked again
    s.run(1)
    expected = undisturbed.iloc[: s.step_number]
    pd.testing.assert_frame_equal(numbers(s), expected, check_exact=True)


def test_a_pause_stops_a_running_run_that_is_being_looked_at(
    s: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pause does not wait for a look under way, nor for those queued behind it."""
    entered, go_on = threading.Event(), threading.Event()

    def held(*args: Any, **kwargs: Any) -> float:
        entered.set()
        assert go_on.wait(60)
        s._worker.queue.check()
        return 0.0

    raised: list[BaseException] = []

    def look() -> None:
        try:
            s.evaluate("train", n=1)
        except SessionError as error:
            raised.append(error)

    with monkeypatch.context() as patch:
        patch.setattr("workbench.measuring.greedy_accuracy", held)
        s.start()
        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        assert entered.wait(60)
        pausing = threading.Thread(target=s.pause, daemon=True)
        pausing.start()
        until_marked(s)
        go_on.set()
        pausing.join(60)
        looking.join(60)
    assert s.state == "paused"
    assert "evaluate: broken off by a pause" in str(raised[0])
    s.run(1)


def test_closing_breaks_off_a_rewind(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = Session(config, tmp_path / "run")
    s.run(4)
    before = numbers(s)
    raised: list[BaseException] = []

    def rewind() -> None:
        try:
            s.rewind(3)
        except SessionError as error:
            raised.append(error)

    with monkeypatch.context() as patch:
        held = Held(patch, at=2)

        def shut() -> None:
            closing = threading.Thread(target=s.close, daemon=True)
            closing.start()
            until_marked(s)

        closing = held.then(shut)
        rewinding = threading.Thread(target=rewind, daemon=True)
        rewinding.start()
        rewinding.join(60)
        closing.join(60)
    assert "rewind: broken off by closing the session" in str(raised[0])
    s.close()
    with Session.open(tmp_path / "run") as again:
        pd.testing.assert_frame_equal(numbers(again), before)
