"""A step that fails: nothing is lost, and the run goes on."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.session.runs import STEPS, History, assert_same_numbers, weights
from tests.training.tiny import same_bits
from workbench.config import ConfigError, RunConfig
from workbench.session import Session
from workbench.worker import SessionError


@pytest.mark.parametrize(
    ("part", "tensor"),
    [("base", "rl objective"), ("baseline_base", "baseline_rl objective")],
)
def test_a_nan_stops_the_run_with_nothing_lost(
    s: Session, history: History, part: str, tensor: str
) -> None:
    s.run(2)
    poisoned = getattr(s._worker.engine.policy, part)["model.norm.weight"]
    with torch.no_grad():
        poisoned[0] = float("nan")
    before = weights(s)
    with pytest.raises(SessionError, match=f"step 3 was not applied: {tensor} is not finite"):
        s.run(2)
    assert (s.state, s.step_number) == ("paused", 2)
    assert all(torch.equal(a.nan_to_num(), before[n].nan_to_num()) for n, a in weights(s).items())
    finding = s.frame("findings").iloc[0]
    assert finding["severity"] == "critical"
    assert finding["evidence"] == {"phase": "gradients", "tensor": tensor}
    assert "gradients" in finding["message"] and tensor in finding["message"]
    assert s.reader.snapshot_steps() == [0, 2]
    with pytest.raises(SessionError):  # it stays so
        s.step()
    s.rewind(2)
    assert same_bits(weights(s), history.weights[2])
    s.run(STEPS - 2)
    assert_same_numbers(s, history.numbers)


def test_a_full_disk_stops_the_run_and_it_goes_on_from_what_was_recorded(
    s: Session, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    s.run(2)

    def full(record: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(s._worker.engine.store, "append", full)
        with pytest.raises(SessionError, match="No space left"):
            s.run(3)
    assert (s.state, s.step_number) == ("failed", 2)
    s.save()  # must not pass the weights of step 3 off as those of step 2
    s.sample(["1+2=?"])
    assert same_bits(weights(s), history.weights[2])
    s.rewind(2)
    assert same_bits(weights(s), history.weights[2])
    s.run(STEPS - 2)
    assert_same_numbers(s, history.numbers)


def test_a_fault_in_a_step_can_be_survived(
    s: Session, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("workbench.training.trainer.measure", lambda *args: 1 / 0)
        with pytest.raises(SessionError, match="division by zero"):
            s.step()
    assert s.state == "failed"
    assert s.frame("findings")["detector"].tolist() == ["fault"]
    s.run(STEPS)
    assert s.state == "idle"
    assert_same_numbers(s, history.numbers)


def test_numbers_of_a_frame_are_taken_and_what_is_no_setting_is_refused(
    s: Session, tmp_path: Path
) -> None:
    """A command that cannot be recorded must not end the thread that everybody waits for."""
    s.run(np.int64(2))
    step = s.frame("metrics")["step"].iloc[-1]
    assert isinstance(step, np.int64)
    s.pin(step)
    s.unpin(step)
    s.set(kl_coef=np.float64(0.01))
    s.replay(step, kl_coef=np.float32(0.5))
    with s.fork(tmp_path / "fork", step, group_size=np.int64(3)) as fork:
        assert fork.config.training.group_size == 3
    with pytest.raises(ConfigError, match="no such demonstration: 7"):
        s.set_aside([7])
    for call in (lambda: s.set(kl_coef={1}), lambda: s.replay(2, kl_coef=object())):
        with pytest.raises(ConfigError, match="a setting is a number, text, list or table"):
            call()
    with pytest.raises(TypeError):
        s.run(1.5)
    s.rewind(step)
    assert (s.state, s.step_number) == ("idle", 2)


def test_a_database_that_breaks_under_a_run_ends_the_session_and_keeps_nobody_waiting(
    s: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    s.run(2)

    def broken(*args: object) -> None:
        raise sqlite3.DatabaseError("database disk image is malformed")

    store = s._worker.engine.store
    monkeypatch.setattr(store, "last_step", broken)
    monkeypatch.setattr(store, "add_command", broken)
    for call in (s.step, s.save, lambda: s.rewind(1)):
        with pytest.raises((sqlite3.DatabaseError, SessionError), match="malformed|closed"):
            call()
    s.close()
    assert s.state == "closed" and "malformed" in s.error


def test_what_no_phase_expects_ends_the_session_in_words(
    s: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s._worker, "_one_step", lambda: 1 / 0)
    with pytest.raises(SessionError, match="the session has ended: .*division by zero"):
        s.run(1)
    assert s.state == "closed"
    with pytest.raises(SessionError, match="the session is closed"):
        s.set(kl_coef=0.1)
    with Session.resume(s.run_dir) as again:
        again.run(1)


def test_a_pause_by_a_detector_whose_snapshots_were_all_deleted_says_so(
    config: RunConfig, tmp_path: Path
) -> None:
    quiet = config.with_changes(verifier_fault="silent", verifier_silent="pause", snapshot_every=99)
    with Session(quiet, tmp_path / "run") as s:
        s.run(3)
        shutil.rmtree(s.run_dir / "snapshots/step-000000")
        s.run(9)
        assert s.state == "paused"
        assert "No snapshot before the onset is left." in s.paused_by
        s.run(1)
        s.rewind(1)  # made again from the model
        assert s.step_number == 1
