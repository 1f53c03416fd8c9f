"""A run through its Session whose disk fills up, whose snapshots are harmed, or have a budget."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from tests.training.tiny import copy_of, same_bits, save_tiny_llama
from workbench.config import RunConfig
from workbench.session import Session
from workbench.store import BudgetError, RunFolderError, WriteError, open_run
from workbench.worker import SessionError

STEPS = 5


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    model = save_tiny_llama(tmp_path_factory.mktemp("tiny"))
    return RunConfig().with_changes(
        path=str(model),
        device="cpu",
        lora_rank=2,
        terms=(3,),
        n_prompts=6,
        n_validation=2,
        n_hard=0,
        n_demonstrations=4,
        base_lr=1e-3,
        coordinator_lr=1e-2,
        prompts_per_step=2,
        group_size=2,
        demonstrations_per_step=2,
        reward_flip=0.4,
        max_new_tokens=3,
        paired_gain_every=0,
        evaluate_every=0,
        coordinator_every=2,
        snapshot_every=1,
        keep_last=9,
    )


def numbers(run: Session) -> pd.DataFrame:
    frame = run.frame("metrics").set_index("step")
    return frame[[n for n in sorted(frame) if not n.startswith(("seconds/", "snapshot/"))]]


class History:
    """The uninterrupted run: its numbers, and its weights in the end."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        with Session(config, folder) as s:
            s.run(STEPS)
            self.numbers, self.weights = numbers(s), weights(s)


def weights(s: Session) -> dict[str, object]:
    policy = s._worker.engine.policy
    parts = {"θ": policy.base, "θ̂": policy.baseline_base, "w": policy.coordinator}
    return {f"{p} {n}": t for p, part in parts.items() for n, t in copy_of(part).items()}


@pytest.fixture(scope="module")
def history(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> History:
    return History(config, tmp_path_factory.mktemp("history") / "run")


def check_goes_on(folder: Path, history: History) -> pd.DataFrame:
    """The run resumes and ends as the uninterrupted one; returns its findings."""
    with Session.resume(folder) as s:
        if s.step_number < STEPS:
            s.run(STEPS - s.step_number)
        pd.testing.assert_frame_equal(numbers(s), history.numbers, check_exact=True)
        assert same_bits(weights(s), history.weights)
        assert open_run(folder).problems() == []
        return s.frame("findings")


@pytest.fixture
def closed(config: RunConfig, tmp_path: Path) -> Path:
    """Four steps, with a snapshot of each and of the start."""
    with Session(config, tmp_path / "run") as s:
        s.run(STEPS - 1)
    return tmp_path / "run"


def flip_last_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.unlink()
    file.write_bytes(data)


def test_a_damaged_snapshot_is_passed_over_and_the_steps_after_it_executed_again(
    closed: Path, history: History
) -> None:
    flip_last_byte(closed / "snapshots/step-000004/base/model.safetensors")
    (closed / "snapshots/step-000003/state.json").unlink()
    findings = check_goes_on(closed, history)
    assert list(findings["detector"]) == ["run_folder", "run_folder"]
    first, second = findings["message"]
    assert "step-000004/base/model.safetensors is damaged" in first
    assert "step-000003/state.json is missing; set aside, went on from step 2 instead" in second
    aside = sorted(path.name for path in (closed / "snapshots").glob("damaged-*"))
    assert aside == ["damaged-step-000003", "damaged-step-000004"]


def test_a_run_all_of_whose_snapshots_were_deleted_starts_again_from_its_model(
    closed: Path, history: History
) -> None:
    shutil.rmtree(closed / "snapshots")
    assert check_goes_on(closed, history).empty
    assert 0 in open_run(closed).snapshot_steps()


def test_a_fork_without_its_first_snapshot_says_where_to_fork_again(
    closed: Path, tmp_path: Path
) -> None:
    with Session.resume(closed) as s, s.fork(tmp_path / "fork", 2):
        pass
    shutil.rmtree(tmp_path / "fork/snapshots/step-000002")
    with pytest.raises(RunFolderError, match="no intact snapshot of step 2 or later .* fork again"):
        Session.resume(tmp_path / "fork")
    assert open_run(tmp_path / "fork").last_step() == 2


def test_a_run_of_an_earlier_workbench_goes_on(closed: Path, history: History) -> None:
    """It had no sums, and one file of optimizer states."""
    with closing(sqlite3.connect(closed / "run.sqlite")) as database, database:
        database.execute("DROP TABLE checksums")
    for folder in (closed / "snapshots").iterdir():
        (folder / "SHA256SUMS").unlink()
        states: dict[str, np.ndarray] = {}
        for file in folder.glob("optimizers/*.safetensors"):
            states |= load_file(file)
        save_file(states, folder / "optimizers.safetensors")
        shutil.rmtree(folder / "optimizers", ignore_errors=True)
    assert check_goes_on(closed, history).empty


# --- the disk -----------------------------------------------------------------------------------


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """As a full disk: whatever writes beyond `size` bytes of a file gets an error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 4_000, 50_000])
def test_a_full_disk_pauses_the_run_and_it_goes_on_once_there_is_space(
    size: int, config: RunConfig, history: History, tmp_path: Path
) -> None:
    with Session(config, tmp_path / "run") as s:
        s.run(2)
        with no_file_longer_than(size):
            with pytest.raises((SessionError, WriteError), match="not written: .*; free some"):
                s.run(STEPS)
            assert s.state == "paused"
            assert "\n" not in s.error
            with pytest.raises(WriteError):
                s.save()
        assert s.step_number == s.reader.last_step() < STEPS
        s.run(STEPS - s.step_number)
        pd.testing.assert_frame_equal(numbers(s), history.numbers, check_exact=True)
        assert same_bits(weights(s), history.weights)
        (message,) = s.frame("findings")["message"]
        assert "was not written" in message
    assert open_run(tmp_path / "run").problems() == []
    assert not list((tmp_path / "run").rglob(".*"))


def test_a_session_closed_on_a_full_disk_loses_nothing_recorded(
    config: RunConfig, history: History, tmp_path: Path
) -> None:
    s = Session(config, tmp_path / "run")
    s.run(2)
    with no_file_longer_than(0):
        with pytest.raises(WriteError, match="the command 'start' was not written"):
            s.start(1)
        s.close()
    assert s.state == "closed" and "not written" in s.error
    assert check_goes_on(tmp_path / "run", history).empty


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of eight megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_real_full_disk_pauses_the_run_and_it_goes_on_once_there_is_space(
    small_disk: Path, config: RunConfig, history: History
) -> None:
    with Session(config, small_disk / "run") as s:
        s.run(1)
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(b"x" * 1024)
        with pytest.raises((SessionError, WriteError), match="No space left|full"):
            s.run(STEPS)
        assert s.state == "paused"
        filler.unlink()
        s.run(STEPS - s.step_number)
        pd.testing.assert_frame_equal(numbers(s), history.numbers, check_exact=True)
        assert same_bits(weights(s), history.weights)
    assert open_run(small_disk / "run").problems() == []


def test_a_disk_too_small_to_begin_on_is_said(small_disk: Path, config: RunConfig) -> None:
    (small_disk / "filler").write_bytes(b"x" * 8_380_000)
    with pytest.raises(RunFolderError, match="No space left|full") as caught:
        Session(config, small_disk / "run")
    assert "\n" not in str(caught.value)


# --- the budget ---------------------------------------------------------------------------------


def test_a_run_keeps_to_its_budget_and_pins(config: RunConfig, tmp_path: Path) -> None:
    with Session(config, tmp_path / "whole") as s:
        s.run(1)
        one = s.record(1).metrics["snapshot/bytes"] / 1e6
        start = s.reader.snapshots()["bytes"][0] / 1e6
    budget = start + 2.5 * one
    with Session(config.with_changes(snapshot_budget_mb=budget), tmp_path / "run") as s:
        s.run(1)
        s.pin(1)
        s.run(3)
        assert s.reader.snapshot_steps() == [0, 1, 4]
        files = {p.stat().st_ino: p.stat().st_size for p in (s.run_dir / "snapshots").rglob("*.*")}
        assert sum(files.values()) <= budget * 1e6
        s.pin(4)
        s.run(3)
        assert s.state == "idle" and s.step_number == 7
        (finding,) = s.frame("findings").to_dict("records")  # said once
        assert finding["setting"] == "snapshot_budget_mb" and "unpin one" in finding["message"]
        assert s.reader.snapshot_steps() == [0, 1, 4]
        with pytest.raises(BudgetError):
            s.save()
        s.unpin(4)
        s.step()
        assert s.reader.snapshot_steps() == [0, 1, 8]
        commands = s.frame("commands").query("name in ('pin', 'unpin')")
        assert [row["step"] for row in commands["arguments"]] == [1, 4, 4]


def test_what_a_snapshot_takes_is_measured_and_still_parts_are_shared(
    config: RunConfig, tmp_path: Path
) -> None:
    still = config.with_changes(train_coordinator=False)
    with Session(still, tmp_path / "run") as s:
        s.run(2)
        folder = s.run_dir / "snapshots"
        names = ["coordinator/adapter_model.safetensors", "coordinator/adapter_config.json"]
        for name in names:
            files = [folder / f"step-00000{i}" / name for i in range(3)]
            assert len({os.stat(file).st_ino for file in files}) == 1
        took = s.record(2).metrics
        assert 0 < took["snapshot/new_bytes"] < took["snapshot/bytes"]
        files = [p for p in (folder / "step-000002").rglob("*") if p.is_file()]
        assert took["snapshot/bytes"] == sum(p.stat().st_size for p in files)
        assert np.isfinite(took["seconds/snapshot"]) and took["seconds/snapshot"] > 0
