"""Pauses, Ctrl-C, states and targets."""

from __future__ import annotations

import _thread

import pytest

from tests.session.runs import STEPS, Gate, History, assert_same_numbers, in_thread, until
from workbench.session import Session
from workbench.worker import SessionError


@pytest.mark.parametrize(
    ("held", "next_phase", "steps"),
    [
        ("scene.sample", "rewards", 0),
        ("scene.flip", "gradients", 0),
        ("trainer.rl_pass", "probes", 0),
        ("trainer.measure", "update", 0),
        ("trainer.Trainer._update", "", 1),
    ],
    ids=["rollouts", "rewards", "gradients", "probes", "update"],
)
def test_a_pause_waits_for_the_phase_under_way_and_no_longer(
    s: Session, monkeypatch: pytest.MonkeyPatch, held: str, next_phase: str, steps: int
) -> None:
    gate = Gate(monkeypatch, held)
    s.start()
    gate.wait()
    assert s.state == "running"
    pausing = in_thread(s.pause)
    until(s, lambda: s.state == "pausing")
    gate.open()
    pausing.join(60)
    assert (s.state, s.progress.phase, s.step_number) == ("paused", next_phase, steps)


def test_ctrl_c_pauses_a_run(s: Session, history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    s.run(1)  # the interrupt comes in the second step, long after run() began to wait
    with monkeypatch.context() as patch:
        gate = Gate(patch, "trainer.measure")

        def interrupt() -> None:
            gate.wait()
            _thread.interrupt_main()
            until(s, lambda: s.state == "pausing")
            gate.open()

        interrupting = in_thread(interrupt)
        s.run()
        interrupting.join(60)
    assert s.state == "paused"
    assert s.step_number == 1
    s.run(STEPS - 1)
    assert_same_numbers(s, history.numbers)


def test_a_step_that_someone_else_pauses_says_so(
    s: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[BaseException] = []

    def step() -> None:
        try:
            s.step()
        except BaseException as error:
            raised.append(error)

    gate = Gate(monkeypatch, "trainer.measure")
    stepping = in_thread(step)
    gate.wait()
    pausing = in_thread(s.pause)
    until(s, lambda: s.state == "pausing")
    gate.open()
    pausing.join(60)
    stepping.join(60)
    assert [type(error) for error in raised] == [SessionError]
    assert s.step().step == 1  # finishes it


def test_states_and_targets(s: Session) -> None:
    assert s.state == "idle"
    with pytest.raises(SessionError, match="not paused"):
        s.resume()
    for steps in (0, -1):
        with pytest.raises(SessionError, match="at least 1"):
            s.run(steps)
    s.pause()  # nothing runs: nothing happens
    assert s.state == "idle"
    s.start()
    for call in (lambda: s.start(), lambda: s.run(1), lambda: s.step()):
        with pytest.raises(SessionError, match="going already"):
            call()
    with pytest.raises(SessionError, match="pause it first"):
        s.rewind(0)
    with pytest.raises(SessionError, match="pause it first"):
        s.fork(s.run_dir / "fork")
    s.pause()
    assert s.state == "paused"
    s.run(1)
    assert s.state == "idle"
    names = list(s.frame("commands")["name"])
    expected = ["resume", "pause", "start", "start", "run", "step", "rewind", "fork", "pause"]
    assert names == [*expected, "run"]
