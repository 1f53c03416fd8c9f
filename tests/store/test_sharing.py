"""Files that snapshots have in common, what they take, and the budget that is never exceeded."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from random import Random

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from workbench.config import RunConfig
from workbench.store import BudgetError, RunFolderError, RunStore, Snapshot, open_run
from workbench.store.retention import MB
from workbench.store.tensors import TensorFile

BIG = 25_000  # float32 in each of two files: 0.1 MB each


def state(step: int, moving: float, frozen: float = 0.0) -> Snapshot:
    """Two files of 0.1 MB: one is `moving` everywhere, one `frozen`."""
    return Snapshot(
        step,
        {
            "base/model.safetensors": {"w": np.full(BIG, moving, np.float32)},
            "frozen.safetensors": {"w": np.full(BIG, frozen, np.float32)},
        },
        {"base/config.json": "{}"},
        {"step": step},
    )


def blocks(folder: Path) -> int:
    """Bytes of the distinct files below a folder."""
    files = {p.stat().st_ino: p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    return sum(files.values())


@pytest.mark.parametrize("seed", range(3))
def test_a_tensor_file_is_byte_for_byte_what_safetensors_writes(seed, tmp_path):
    draw = np.random.default_rng(seed)
    dtypes = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"]
    arrays = {
        f"part.{draw.integers(100)}/größe": draw.integers(0, 2, draw.integers(0, 4, 2)).astype(d)
        for d in dtypes
    }
    arrays["scalar"] = np.array(3.5)
    file = TensorFile(arrays)
    file.write(tmp_path / "x.safetensors")
    written = (tmp_path / "x.safetensors").read_bytes()
    assert written == save(arrays, {"format": "pt"})
    assert (file.bytes, file.sha256) == (len(written), hashlib.sha256(written).hexdigest())


def test_a_transposed_array_keeps_its_values(tmp_path):
    array = np.arange(6.0).reshape(2, 3).T
    TensorFile({"t": array}).write(tmp_path / "t.safetensors")
    np.testing.assert_array_equal(load_file(tmp_path / "t.safetensors")["t"], array)


def test_equal_files_are_stored_once_and_measured(tmp_path, record):
    config = RunConfig().with_changes(keep_last=9)
    with RunStore.create(tmp_path / "run", config) as store:
        store.save_snapshot(state(0, 0.0))  # both files are zeros: one within the snapshot
        for step in (1, 2):
            store.append(record(step))
            store.save_snapshot(state(step, float(step)))
        folder = tmp_path / "run/snapshots"
        assert 5 * 0.1 * MB > blocks(folder) > 3 * 0.1 * MB
        frozen = {(folder / f"step-00000{i}/frozen.safetensors").stat().st_ino for i in range(3)}
        assert len(frozen) == 1
        metrics = open_run(store.path).record(2).metrics
        assert metrics["snapshot/bytes"] > 0.2 * MB
        assert 0.1 * MB < metrics["snapshot/new_bytes"] < 0.11 * MB
        assert metrics["seconds/snapshot"] > 0
        for step in range(3):
            loaded = store.load_snapshot(step).tensors
            assert (loaded["base/model.safetensors"]["w"] == step).all()
            assert (loaded["frozen.safetensors"]["w"] == 0).all()


def test_deleting_one_snapshot_leaves_those_that_share_with_it(tmp_path, record):
    config = RunConfig().with_changes(keep_last=1, keep_every=0)
    with RunStore.create(tmp_path / "run", config) as store:
        store.save_snapshot(state(0, 0.0, frozen=7.0))
        for step in (1, 2, 3):
            store.append(record(step))
            store.save_snapshot(state(step, float(step), frozen=7.0))
        assert store.snapshot_steps() == [0, 3]
        assert (store.load_snapshot(3).tensors["frozen.safetensors"]["w"] == 7).all()


def test_damage_is_not_passed_on_by_sharing(tmp_path, record):
    with RunStore.create(tmp_path / "run", RunConfig()) as store:
        folder = store.save_snapshot(state(0, 1.0, frozen=7.0))
        with (folder / "frozen.safetensors").open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"!")
        store.append(record(1))
        store.save_snapshot(state(1, 2.0, frozen=7.0))
        assert (store.load_snapshot(1).tensors["frozen.safetensors"]["w"] == 7).all()
        with pytest.raises(RunFolderError, match="frozen.safetensors is damaged"):
            store.load_snapshot(0)


@pytest.mark.parametrize("budget", [0.45, 0.75, 1.6])
def test_a_budget_is_never_exceeded_and_the_oldest_unpinned_go(
    budget, tmp_path, record, monkeypatch
):
    config = RunConfig().with_changes(keep_last=99, snapshot_budget_mb=budget)
    folder = tmp_path / "run/snapshots"
    most = []
    write_bytes = TensorFile.write

    def watched(file, path):
        write_bytes(file, path)
        most.append(blocks(folder))

    monkeypatch.setattr(TensorFile, "write", watched)
    with RunStore.create(tmp_path / "run", config) as store:
        draw, moving = Random(1), 0.0
        store.save_snapshot(state(0, moving, frozen=-1.0))
        for step in range(1, 12):
            store.append(record(step, rollouts=0))
            moving += 1
            store.save_snapshot(state(step, moving, frozen=float(draw.randrange(3))))
            most.append(blocks(folder))
            there = store.snapshot_steps()
            assert there[0] == 0 and there[-1] == step
            assert there[1:] == list(range(there[1], step + 1))  # only the oldest are missing
        assert max(most) <= budget * MB
        assert len(there) > 2 or budget < 0.5


def store_took(folder: Path, step: int) -> float:
    return open_run(folder).record(step).metrics["seconds/snapshot"]


def test_pinned_snapshots_stay_whatever_rule_or_budget(tmp_path, record):
    config = RunConfig().with_changes(keep_last=1, keep_every=0, snapshot_budget_mb=0.75)
    with RunStore.create(tmp_path / "run", config) as store:
        store.save_snapshot(state(0, 0.0, 0.5))
        for step in range(1, 6):
            store.append(record(step))
            store.save_snapshot(state(step, float(step), step + 0.5))
            if step == 2:
                store.pin(2)
        assert store.snapshot_steps() == [0, 2, 5] and store.pinned() == [2]
        table = open_run(store.path).snapshots()
        assert list(table["step"]) == [0, 2, 5]
        assert list(table["pinned"]) == [False, True, False]
        assert (table["own_bytes"] > 0.2 * MB).all()
        took = [store_took(store.path, step) for step in (2, 5)]
        assert list(table["seconds"][1:]) == took and np.isnan(table["seconds"][0])
        store.pin(5)
        store.append(record(6))
        before = blocks(store.path / "snapshots")
        with pytest.raises(BudgetError, match=r"^snapshot_budget_mb = 0.75: .* 0, 2, 5\); unpin"):
            store.save_snapshot(state(6, 6.0, 6.5))
        assert store.snapshot_steps() == [0, 2, 5]
        assert blocks(store.path / "snapshots") == before
        store.unpin(2)
        store.save_snapshot(state(6, 6.0, 6.5))
        assert store.snapshot_steps() == [0, 5, 6]
        with pytest.raises(RunFolderError, match="^unpin: step 2 is not pinned; pinned are: 5$"):
            store.unpin(2)
        with pytest.raises(RunFolderError, match="^pin: there is no snapshot of step 3; .* 0, 5"):
            store.pin(3)


def test_a_rewind_drops_the_pins_behind_it_and_a_fork_keeps_those_before(tmp_path, record):
    with RunStore.create(tmp_path / "run", RunConfig()) as store:
        for step in (1, 2, 3):
            store.append(record(step))
            store.save_snapshot(state(step, float(step)))
            store.pin(step)
        with store.fork(tmp_path / "fork", 2) as fork:
            assert fork.pinned() == [1, 2]
        store.rewind(1)
        assert store.pinned() == store.snapshot_steps() == [1]


def test_a_snapshot_written_in_the_background_counts_once_it_is_settled(tmp_path, record):
    ended = []
    with RunStore.create(tmp_path / "run", RunConfig()) as store:
        store.append(record(1))
        store.start_snapshot(state(1, 1.0), lambda: ended.append(1))
        store.append(record(2))  # goes on meanwhile
        store.start_snapshot(state(2, 2.0), lambda: ended.append(2))
        assert store.snapshot_steps() == [1, 2] and ended == [1, 2]
        assert not store.snapshot_ended and store.failures() == []
        assert open_run(store.path).record(1).metrics["snapshot/bytes"] > 0
        store.start_snapshot(state(2, 9.0))
        store.rewind(1)
        assert store.snapshot_steps() == [1]
        store.append(record(2))
        store.start_snapshot(state(2, 3.0))
    with RunStore.open(tmp_path / "run") as store:  # closing waited for it
        assert (store.load_snapshot(2).tensors["base/model.safetensors"]["w"] == 3).all()


def test_what_goes_wrong_in_the_background_is_not_lost(tmp_path, record):
    config = RunConfig().with_changes(snapshot_budget_mb=0.1)
    with RunStore.create(tmp_path / "run", config) as store:
        store.append(record(1))
        store.start_snapshot(state(1, 1.0, 2.0))
        assert store.snapshot_steps() == []
        assert store.snapshot_ended
        (error,) = store.failures()
        assert isinstance(error, BudgetError) and "0.2 MB" in str(error)
        assert not store.snapshot_ended
    assert list((tmp_path / "run/snapshots").iterdir()) == []


def test_a_fork_with_a_budget_takes_only_what_fits(tmp_path, record):
    with RunStore.create(tmp_path / "run", RunConfig().with_changes(keep_last=99)) as store:
        store.save_snapshot(state(0, 0.0, 0.5))
        for step in range(1, 5):
            store.append(record(step))
            store.save_snapshot(state(step, float(step), step + 0.5))
        small = RunConfig().with_changes(snapshot_budget_mb=0.65)
        with store.fork(tmp_path / "fork", 4, small) as fork:
            assert fork.snapshot_steps() == [0, 3, 4]
        assert store.snapshot_steps() == [0, 1, 2, 3, 4]
        with pytest.raises(BudgetError, match="snapshot_budget_mb = 0.3"):
            store.fork(tmp_path / "no", 4, RunConfig().with_changes(snapshot_budget_mb=0.3))
        assert not (tmp_path / "no").exists()
