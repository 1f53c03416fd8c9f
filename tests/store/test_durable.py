"""What must reach the disk before what: a power cut must not leave a name without contents."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workbench.store import RunStore


@pytest.fixture
def events(monkeypatch) -> list[tuple[str, object]]:
    """("flush", inode) and ("rename", name of the target), as they happen."""
    seen: list[tuple[str, object]] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def flush(descriptor):
        seen.append(("flush", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def renaming(call):
        def rename_and_tell(source, target):
            seen.append(("rename", Path(target).name))
            call(source, target)

        return rename_and_tell

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "rename", renaming(rename))
    monkeypatch.setattr(os, "replace", renaming(replace))
    return seen


def check_order(events, renamed: Path, files: list[Path]):
    at = events.index(("rename", renamed.name))
    for file in files:
        assert ("flush", file.stat().st_ino) in events[:at], file
    assert ("flush", renamed.parent.stat().st_ino) in events[at:]


def test_a_rollouts_file_is_flushed_before_it_gets_its_name(tmp_path, config, record, events):
    with RunStore.create(tmp_path / "run", config) as store:
        store.append(record(1))
        file = store.path / "rollouts/step-000001.parquet"
    check_order(events, file, [file])


def test_a_snapshot_is_flushed_before_it_gets_its_name(tmp_path, config, snapshot, events):
    with RunStore.create(tmp_path / "run", config) as store:
        folder = store.save_snapshot(snapshot(0))
    inside = list(folder.rglob("*"))
    assert len(inside) == 9  # seven files in two folders
    check_order(events, folder, [folder, *inside])


def test_a_new_run_is_flushed_before_it_gets_its_name(tmp_path, config, events):
    with RunStore.create(tmp_path / "run", config) as store:
        for name in ("config.toml", "run.sqlite"):
            check_order(events, store.path / name, [store.path / name])


def test_a_fork_is_flushed_before_it_gets_its_name(tmp_path, config, record, snapshot, events):
    with RunStore.create(tmp_path / "run", config) as store:
        store.append(record(1))
        store.save_snapshot(snapshot(1))
        store.fork(tmp_path / "fork", 1).close()
    inside = [path for path in (tmp_path / "fork").rglob("*") if path.name != "lock"]
    check_order(events, tmp_path / "fork", inside)
