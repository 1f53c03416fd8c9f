"""Killed at each point of every write: before each file operation and each SQL statement.

A process of its own forks a child for each point; the child stops itself with SIGKILL there. Then
the folder must open with a history that is either the one before or the one after.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.store import RunFolderError, RunStore, open_run

CRASHES = """
import os, pickle, shutil, signal, sys
from pathlib import Path
from workbench.config import RunConfig
from workbench.store import RunStore

out = Path(sys.argv[1])
given = pickle.loads((out / "given.pickle").read_bytes())

def count_down(n):
    left = [n]
    def tick(*_):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return tick

def before(tick, call):
    def counted(*args, **kwargs):
        tick()
        return call(*args, **kwargs)
    return counted

def act(action, folder, tick):
    store = None if action in ("create", "open") else RunStore.open(folder)
    os.fsync = lambda descriptor: None
    for name in ("mkdir", "rename", "replace", "unlink", "rmdir", "link"):
        setattr(os, name, before(tick, getattr(os, name)))
    if store:
        store._db.set_trace_callback(tick)
    match action:
        case "create":
            RunStore.create(folder, RunConfig())
        case "open":
            RunStore.open(folder)
        case "append":
            store.append(given["record"])
        case "snapshot":
            store.save_snapshot(given["snapshot"])
        case "rewind":
            store.rewind(1)
        case "fork":
            store.fork(folder.parent / "fork", 1)

for action in sys.argv[2:]:
    stride = 3 if action == "fork" else 1  # a fork has many points alike, one a linked file
    point, status = 0, 1
    while status:
        point += stride
        folder = out / f"{action}-{point}" / "run"
        shutil.copytree(out / ("dirty" if action == "open" else "base"), folder)
        if action == "create":
            shutil.rmtree(folder)
        child = os.fork()
        if child == 0:
            act(action, folder, count_down(point))
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if status not in (0, signal.SIGKILL):
            sys.exit(f"{action} failed at point {point}")
"""


@pytest.fixture(scope="module")
def crashed(tmp_path_factory, record, snapshot, config) -> Path:
    """Folders <action>-<point>/run, each left by a kill; the last point of an action is no kill.

    The base is a run of two steps with snapshots of steps 0, 1, 2.
    """
    out = tmp_path_factory.mktemp("crashed")
    with RunStore.create(out / "base", config) as store:
        store.save_snapshot(snapshot(0))
        for step in (1, 2):
            store.append(record(step))
            store.save_snapshot(snapshot(step))
    with RunStore.create(out / "dirty", config) as store:
        store.append(record(1))
        for step in (0, 1, 2):
            store.save_snapshot(snapshot(step))
    snapshots = out / "dirty/snapshots"
    (snapshots / "step-000001").rename(snapshots / ".replaced-step-000001")
    (snapshots / ".writing-step-000001-7").mkdir()
    (snapshots / ".removing-step-000005").mkdir()
    for name in ("step-000002.parquet", ".writing-step-000003.parquet"):
        (out / "dirty/rollouts" / name).write_text("half")
    given = {"record": record(3), "snapshot": snapshot(2, 9.0)}
    (out / "given.pickle").write_bytes(pickle.dumps(given))
    actions = ["create", "open", "append", "snapshot", "rewind", "fork"]
    subprocess.run([sys.executable, "-c", CRASHES, str(out), *actions], check=True)
    return out


def points(crashed: Path, action: str) -> list[Path]:
    folders = sorted(crashed.glob(f"{action}-*"), key=lambda f: int(f.name.split("-")[1]))
    assert len(folders) > 3
    return [folder / "run" for folder in folders]


def check_clean(store: RunStore) -> None:
    """Nothing half-written is left, every recorded step and every offered snapshot can be read."""
    run = open_run(store.path)
    for step in range(1, store.last_step() + 1):
        assert run.record(step).step == step
    for step in store.snapshot_steps():
        assert store.load_snapshot(step).step == step
    folders = {path.name for path in (store.path / "snapshots").iterdir()}
    assert folders == {f"step-{step:06d}" for step in store.snapshot_steps()}
    named = set(run.frame("metrics", history=True)["step"])
    files = {path.name for path in (store.path / "rollouts").iterdir()}
    assert files == {f"step-{step:06d}.parquet" for step in named}


def test_killed_while_appending(crashed, record):
    reached = []
    for folder in points(crashed, "append"):
        with RunStore.open(folder) as store:
            reached.append(store.last_step())
            check_clean(store)
            if store.last_step() == 2:
                store.append(record(3))
            assert repr(open_run(folder).record(3)) == repr(record(3))
    assert reached == sorted(reached) and set(reached) == {2, 3}


def test_killed_while_replacing_a_snapshot(crashed):
    found = []
    for folder in points(crashed, "snapshot"):
        with RunStore.open(folder) as store:
            assert store.snapshot_steps() == [0, 1, 2]
            check_clean(store)
            value = store.load_snapshot(2).state["loss"]
            assert (store.load_snapshot(2).tensors["base/model.safetensors"]["w"] == value).all()
            found.append(value)
    assert found == sorted(found) and set(found) == {0.0, 9.0}


def test_killed_while_rewinding(crashed):
    reached = []
    for folder in points(crashed, "rewind"):
        with RunStore.open(folder) as store:
            reached.append(store.last_step())
            assert store.snapshot_steps() == list(range(store.last_step() + 1))
            check_clean(store)
    assert reached == sorted(reached, reverse=True) and set(reached) == {2, 1}


def test_killed_while_forking(crashed):
    forked = []
    for folder in points(crashed, "fork"):
        with RunStore.open(folder) as store:
            assert store.last_step() == 2
            check_clean(store)
        fork = folder.parent / "fork"
        forked.append(fork.exists())
        if fork.exists():
            with RunStore.open(fork) as store:
                assert (store.last_step(), store.snapshot_steps()) == (1, [0, 1])
                check_clean(store)
    assert forked == sorted(forked) and set(forked) == {False, True}


def test_killed_while_creating(crashed, config):
    for folder in points(crashed, "create"):
        try:
            store = RunStore.open(folder)
        except RunFolderError:
            store = RunStore.create(folder, config)
        with store:
            assert store.last_step() == 0
            check_clean(store)


def test_killed_while_clearing_up_after_a_kill(crashed):
    for folder in points(crashed, "open"):
        with RunStore.open(folder) as store:
            assert (store.last_step(), store.snapshot_steps()) == (1, [0, 1])
            check_clean(store)
