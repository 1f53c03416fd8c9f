"""A run that was closed or killed goes on as if nothing had happened."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.session.runs import STEPS, History, assert_same_numbers, pause_half_way, weights
from tests.training.tiny import same_bits
from workbench.config import RunConfig
from workbench.session import Session
from workbench.store import open_run
from workbench.worker import SessionError


def test_resume_after_close_goes_on_as_if_nothing_had_happened(
    s: Session, history: History
) -> None:
    s.run(3)
    s.close()
    assert open_run(s.run_dir).state == "closed"
    with Session.resume(s.run_dir) as again:
        assert (again.state, again.step_number) == ("idle", 3)
        assert same_bits(weights(again), history.weights[3])
        again.run(STEPS - 3)
        assert_same_numbers(again, history.numbers)
        assert same_bits(weights(again), history.weights[STEPS])


_RUN_UNTIL_KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from workbench.config import RunConfig
from workbench.session import Session

config = RunConfig.load(sys.argv[1])
for number, folder in enumerate(map(Path, sys.argv[2:])):
    child = os.fork()
    if child == 0:
        Session(config, folder).run()
    seen = folder / (f"rollouts/step-{number:06d}.parquet" if number else "snapshots/step-000000")
    while not seen.exists():
        time.sleep(0.01)
    time.sleep(0.4 * random.random())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_after_kill_9_at_a_random_moment_the_history_goes_on_unchanged(
    config: RunConfig, history: History, tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text(config.to_toml())
    runs = [tmp_path / f"run{i}" for i in range(3)]
    subprocess.run(
        [sys.executable, "-c", _RUN_UNTIL_KILLED, tmp_path / "config.toml", *runs],
        check=True,
        capture_output=True,
        timeout=600,
        cwd=Path(__file__).parents[2],
    )
    for i, folder in enumerate(runs):
        crashed = open_run(folder)
        assert crashed.state == "crashed"
        last = crashed.last_step()
        assert last >= i - 1  # step i's rollouts were written: it was in flight at the most
        with Session.resume(folder) as s:
            assert s.step_number == last
            s.run(max(1, STEPS - last))
            assert_same_numbers(s, history.numbers)
            assert s.frame("findings").empty


def test_close_during_a_step_loses_that_step_only(
    s: Session, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    s.run(1)
    pause_half_way(s, monkeypatch)
    s.close()
    with Session.resume(s.run_dir) as again:
        assert again.step_number == 1
        again.run(STEPS - 1)
        assert_same_numbers(again, history.numbers)


def test_steps_that_are_executed_again_have_a_progress_bar(
    s: Session, history: History, capsys: pytest.CaptureFixture[str]
) -> None:
    s.run(3)
    s.close()
    capsys.readouterr()
    Session.resume(s.run_dir).close()
    assert "again" not in capsys.readouterr().err  # nothing to do: the snapshot is there
    for step in (2, 3):
        shutil.rmtree(s.run_dir / "snapshots" / f"step-{step:06d}")
    with Session.resume(s.run_dir) as again:
        told = capsys.readouterr().err
        assert "again from the snapshot of step 0" in told
        assert "100%" in told and "3/3" in told
        assert same_bits(weights(again), history.weights[3])


def test_after_close_every_call_says_so_and_reading_goes_on(s: Session, tmp_path: Path) -> None:
    s.run(1)
    s.close()
    s.close()
    assert s.state == "closed"
    calls: list[Callable[[], object]] = [
        s.step,
        s.run,
        s.start,
        s.pause,
        s.resume,
        lambda: s.set(rl_weight=0.1),
        lambda: s.rewind(0),
        lambda: s.fork(tmp_path / "fork"),
        s.save,
        lambda: s.export(tmp_path / "export"),
        lambda: s.sample(["1+2=?"]),
        lambda: s.coordinator_effect("1+2=?"),
        s.paired_gain,
        s.evaluate,
    ]
    for call in calls:
        with pytest.raises(SessionError, match="the session is closed"):
            call()
    assert s.wait()
    assert len(s.frame("metrics")) == 1
    assert s.record(1).step == 1
    assert "closed" in repr(s)
    assert not (tmp_path / "fork").exists()


def test_a_run_goes_on_with_as_many_threads_as_it_had(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums of floats hang on it: else a replay on a larger machine would differ."""
    folder = tmp_path / "run"
    for asked, expected in (("3", 3), (None, 3), ("2", 2), (None, 2)):
        if asked is None:
            monkeypatch.delenv("OMP_NUM_THREADS")
        else:
            monkeypatch.setenv("OMP_NUM_THREADS", asked)
        with Session.resume(folder) if folder.exists() else Session(config, folder) as s:
            used = s._worker.post("threads", "look", torch.get_num_threads)
            assert used == s.reader.meta["threads"] == expected
