"""Files cut, flipped, deleted or put there by someone else: said in one line, nothing lost."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import struct
import subprocess
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from workbench.records import CommandRow, Finding
from workbench.store import DamagedError, RunFolderError, RunStore, open_run, run_tree

STEPS = 3


def flip(file: Path, seed: int) -> None:
    """One bit, anywhere."""
    data = bytearray(file.read_bytes())
    at = Random(seed).randrange(len(data) * 8)
    data[at // 8] ^= 1 << at % 8
    replace(file, bytes(data))


def truncate(file: Path, seed: int) -> None:
    """Only some of the bytes are left, perhaps none."""
    data = file.read_bytes()
    replace(file, data[: Random(seed).randrange(len(data))])


def delete(file: Path, seed: int) -> None:
    file.unlink()


def replace(file: Path, data: bytes) -> None:
    """In a file of its own: the fixture's are linked, not copied."""
    file.unlink()
    file.write_bytes(data)


@pytest.fixture(scope="module")
def intact(tmp_path_factory, config, record, snapshot) -> Path:
    """Three steps, a snapshot of each and of the start."""
    folder = tmp_path_factory.mktemp("intact") / "run"
    with RunStore.create(folder, config.with_changes(keep_last=9)) as store:
        store.save_snapshot(snapshot(0))
        for step in range(1, STEPS + 1):
            store.append(record(step, step / 2))
            store.save_snapshot(snapshot(step, step / 2))
    return folder


@pytest.fixture
def run(intact, tmp_path) -> Path:
    shutil.copytree(intact, tmp_path / "run")
    return tmp_path / "run"


def one_line(error: BaseException, file: Path) -> bool:
    return "\n" not in str(error) and str(file) in str(error)


@pytest.mark.parametrize("harm", [flip, truncate, delete])
@pytest.mark.parametrize(
    "name", ["base/model.safetensors", "optimizers.safetensors", "state.json", "note.txt"]
)
def test_a_damaged_snapshot_is_named_and_the_one_before_is_used(run, harm, name, snapshot):
    harm(run / "snapshots/step-000003" / name, seed=len(name))
    (problem,) = open_run(run).problems()
    assert f"step-000003/{name}" in problem
    with RunStore.open(run) as store:
        with pytest.raises(DamagedError, match=f"step-000003/{name} .*; older snapshots: 0, 1, 2"):
            store.load_snapshot(3)
        assert store.snapshot_steps() == [0, 1, 2, 3]
        used, damaged = store.nearest_snapshot(3)
        assert used is not None and used.state == snapshot(2, 1.0).state
        (error,) = damaged
        assert one_line(error, run / "snapshots/step-000003" / name)
        assert store.snapshot_steps() == [0, 1, 2]
        assert (run / "snapshots/damaged-step-000003").is_dir()
        store.save_snapshot(snapshot(3, 1.5))
        assert store.load_snapshot(3).state == snapshot(3, 1.5).state
    assert open_run(run).last_step() == STEPS


@pytest.mark.parametrize("seed", range(6))
def test_a_flip_or_cut_anywhere_in_a_snapshot_is_found(run, seed):
    folder = run / "snapshots/step-000002"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    harm = [flip, truncate][seed % 2]
    harm(files[seed % len(files)], seed)
    with RunStore.open(run) as store, pytest.raises(DamagedError, match="step-000002"):
        store.load_snapshot(2)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("harm", [flip, truncate, delete])
def test_damaged_rollouts_are_named_and_the_other_steps_can_be_read(run, harm, seed, record):
    file = run / "rollouts/step-000002.parquet"
    harm(file, seed)
    reader = open_run(run)
    for call in (lambda: reader.rollouts(2), lambda: reader.frame("rollouts")):
        with pytest.raises(DamagedError) as caught:
            call()
        assert one_line(caught.value, file)
    assert len(reader.rollouts(3)) == 2 and len(reader.frame("metrics")) == STEPS
    assert any(str(file) in line for line in reader.problems())
    with RunStore.open(run) as store:  # and the run goes on
        store.append(record(4))
    assert len(open_run(run).rollouts(4)) == 2


def test_a_cut_database_is_said_before_anything_is_cleared_up(run):
    database = run / "run.sqlite"
    data = database.read_bytes()
    before = set(run.rglob("*"))
    for size in (0, 50, 5000, len(data) // 2, len(data) - 4096):
        replace(database, data[:size])
        with pytest.raises(DamagedError) as caught:
            RunStore.open(run)
        assert one_line(caught.value, database) and ".recover" in str(caught.value)
        assert before <= set(run.rglob("*"))
    replace(database, data)
    with RunStore.open(run) as store:
        assert store.last_step() == STEPS


def test_a_flipped_bit_in_the_database_is_found(run):
    """A random flip gives an error, or a line about damaged rows, or changed no row."""
    database = run / "run.sqlite"
    data = database.read_bytes()
    frames = ("metrics", "gain", "demonstrations", "alignment", "coordinator")
    expected = [open_run(run).frame(name).drop(columns=noted(name)) for name in frames]
    outcomes = set()
    for seed in range(40):
        replace(database, data)
        if seed < 20:
            flip(database, seed)
        else:  # in a page's header, where it cannot be harmless each time
            pages = len(data) // 4096
            at = 4096 * (1 + seed % (pages - 1)) + seed % 5
            replace(database, data[:at] + bytes([data[at] ^ 2]) + data[at + 1 :])
        try:
            store = RunStore.open(run)
        except RunFolderError as error:
            assert one_line(error, run), error
            outcomes.add("refused")
            continue
        damage, _ = store.damage, store.close()
        if damage:
            assert all("rows of step" in line for line in damage)
            outcomes.add("rows")
            continue
        found = [open_run(run).frame(name).drop(columns=noted(name)) for name in frames]
        assert all(a.equals(b) for a, b in zip(found, expected, strict=True)), seed
        outcomes.add("harmless")
    assert outcomes >= {"refused", "harmless"}


@pytest.mark.parametrize("content", [b"1+2=?", b"layers.0", struct.pack(">d", 1 / 3)])
def test_a_flip_inside_a_row_is_found_and_the_run_goes_on(run, content, record):
    database = run / "run.sqlite"
    data = bytearray(database.read_bytes())
    data[data.rindex(content) + 3] ^= 1
    replace(database, bytes(data))
    with RunStore.open(run) as store:
        (line,) = store.damage
        assert re.fullmatch(r"run.sqlite: rows of step [123] are not those that .* written", line)
        store.append(record(4))
    assert open_run(run).problems() == [line]


FRAMES = ("metrics", "gain", "demonstrations", "alignment", "coordinator", "commands", "findings")
BROKEN_VALUES = {
    "text that is no UTF-8": "UPDATE gain SET prompt = CAST(x'6bff' AS TEXT) WHERE step = 2",
    "a step that was never made": "UPDATE metrics SET step = 66 WHERE step = 2",
    "a number made a text": "UPDATE gain SET joint_reward = 'layers.0' WHERE step = 2",
    "a number made a blob": "UPDATE gain SET joint_reward = x'00' WHERE step = 2",
    "no JSON in meta": "UPDATE meta SET value = '{' WHERE key = 'state'",
    "no JSON in a command": "UPDATE commands SET arguments = '{'",
    "no JSON in a finding": "UPDATE findings SET evidence = '{'",
    "no step in a finding": "UPDATE findings SET step = 'x'",
}
"""What a flipped bit can make of a row; SQLite itself finds nothing wrong with any."""


@pytest.mark.parametrize("statement", BROKEN_VALUES.values(), ids=BROKEN_VALUES)
def test_a_value_that_cannot_be_read_is_said_in_one_line(run, statement):
    with RunStore.open(run) as store:
        store.add_command(CommandRow(2, "rollouts", 0.0, "set", {"rl_weight": 0.5}, "done"))
        store.add_finding(Finding(2, "note", "plateau", "", {"level": 0.5}, ""))
    before = {file for file in run.rglob("*") if file.is_file()}
    with closing(sqlite3.connect(run / "run.sqlite")) as database, database:
        assert database.execute(statement).rowcount

    def read_all():
        reader = open_run(run)
        repr(reader)
        for name in FRAMES:
            reader.frame(name)

    def go_on():
        with RunStore.open(run) as store:
            store.live_commands("set")
            if store.damage:
                raise DamagedError(f"{run}: {store.damage}")

    said = []
    for call in (read_all, go_on, lambda: run_tree(run)):
        try:
            call()
        except RunFolderError as error:
            assert "\n" not in str(error) and ("run.sqlite" in str(error) or "no run" in str(error))
            said.append(error)
    assert said and any(isinstance(error, DamagedError) for error in said)
    assert before <= {file for file in run.rglob("*") if file.is_file()}


def test_what_a_damaged_index_does_not_name_is_kept(run):
    """A flipped bit in a file's name, or in a step, makes leftovers of what belongs to the run."""
    with closing(sqlite3.connect(run / "run.sqlite")) as database, database:
        database.execute("UPDATE rollouts SET file = 'step-000001.parquet' WHERE step = 2")
        database.execute("UPDATE rollouts SET step = 0 WHERE step = 3")
    files = {path.name for path in (run / "rollouts").iterdir()}
    with RunStore.open(run) as store:
        assert store.damage and store.last_step() == 2
        assert store.snapshot_steps() == [0, 1, 2]
    assert {path.name for path in (run / "rollouts").iterdir()} == files
    assert (run / "snapshots/damaged-step-000003/state.json").exists()


def noted(frame: str) -> list[str]:
    """What is added to a step after it was recorded, and has no sum."""
    took = ["seconds/snapshot", "snapshot/bytes", "snapshot/new_bytes"]
    return took if frame == "metrics" else []


def test_the_sums_can_be_checked_by_hand(run):
    for folder in (run / "snapshots").iterdir():
        done = subprocess.run(
            ["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0 and done.stdout.count(": OK") == 6


def test_a_run_without_sums_opens_as_before(run, record, snapshot):
    """As an earlier workbench wrote it."""
    with closing(sqlite3.connect(run / "run.sqlite")) as database, database:
        database.execute("DROP TABLE checksums")
    for file in run.rglob("SHA256SUMS"):
        file.unlink()
    assert open_run(run).problems() == []
    assert len(open_run(run).frame("rollouts")) == 2 * STEPS
    with RunStore.open(run) as store:
        assert store.damage == [] and store.load_snapshot(3).state == snapshot(3, 1.5).state
        store.append(record(4))
        store.save_snapshot(snapshot(4))
        flip(run / "snapshots/step-000003/empty.safetensors", 1)
        with pytest.raises(DamagedError, match="empty.safetensors is damaged"):
            store.load_snapshot(3)


# --- folders that someone prepared --------------------------------------------------------------


@pytest.fixture
def secret(tmp_path) -> Path:
    """A file outside the run folder; nothing may read it or change it."""
    file = tmp_path / "secret.txt"
    file.write_text("secret")
    return file


@pytest.mark.parametrize("name", ["run.sqlite", "config.toml", "lock", "rollouts", "snapshots"])
def test_a_link_in_place_of_a_part_of_the_run_is_refused(run, name, tmp_path):
    os.rename(run / name, tmp_path / "elsewhere")
    (run / name).symlink_to(tmp_path / "elsewhere")
    for open_it in (open_run, RunStore.open):
        with pytest.raises(RunFolderError, match=f"{name} is a link; a run folder holds files"):
            open_it(run)


@pytest.mark.parametrize("place", ["state.json", "note.txt", "new.txt", ""])
def test_a_link_inside_a_snapshot_is_not_followed(run, place, secret):
    folder = run / "snapshots/step-000002"
    target = folder / place if place else folder
    if place:
        target.unlink(missing_ok=True)
    else:
        os.rename(folder, secret.parent / "elsewhere")
    target.symlink_to(secret if place else secret.parent / "elsewhere")
    with RunStore.open(run) as store:
        with pytest.raises(DamagedError, match="is a link"):
            store.load_snapshot(2)
        with store.fork(run.parent / "fork", 3) as fork:  # nor copied as a file
            with pytest.raises(RunFolderError, match="is a link" if place else "no snapshot of"):
                fork.load_snapshot(2)
        store.rewind(1)  # deletes the link, not what it points to
    assert secret.read_text() == "secret"
    assert place or (secret.parent / "elsewhere/state.json").exists()


@pytest.mark.parametrize("name", ["../../secret.txt", "/etc/hostname", "a/../../b", "..\\x", "."])
def test_a_list_of_sums_names_no_file_outside(run, name, secret):
    sums = run / "snapshots/step-000002/SHA256SUMS"
    replace(sums, f"{'0' * 64}  {name}\n".encode())
    with RunStore.open(run) as store, pytest.raises(DamagedError, match="SHA256SUMS is damaged"):
        store.load_snapshot(2)


@pytest.mark.parametrize("file", ["../../secret.txt", "/etc/hostname", "x.parquet", "step-1/../x"])
def test_the_index_names_no_rollouts_file_outside(run, file, secret):
    with closing(sqlite3.connect(run / "run.sqlite")) as database, database:
        database.execute("UPDATE rollouts SET file = ? WHERE step = 2", (file,))
    for call in (lambda: open_run(run).rollouts(2), lambda: open_run(run).frame("rollouts")):
        with pytest.raises(DamagedError, match="names a rollouts file .*: not opened"):
            call()
    with RunStore.open(run) as store, pytest.raises(DamagedError, match="not opened"):
        store.fork(run.parent / "fork", 3)
    assert not (run.parent / "fork").exists() and secret.read_text() == "secret"


def test_a_linked_rollouts_file_is_not_read(run, secret):
    file = run / "rollouts/step-000002.parquet"
    file.unlink()
    file.symlink_to(secret)
    with pytest.raises(DamagedError, match="is a link"):
        open_run(run).rollouts(2)


def test_nothing_is_written_through_a_link_left_for_the_next_file(run, secret, record, snapshot):
    (run / "rollouts/.writing-step-000004.parquet").symlink_to(secret)
    outside = secret.parent / "outside"
    outside.mkdir()
    (run / f"snapshots/.writing-step-000004-{os.getpid()}").symlink_to(outside)
    (run / "snapshots/.removing-step-000009").symlink_to(outside)
    with RunStore.open(run) as store:
        store.append(record(4))
        (run / f"snapshots/.writing-step-000004-{os.getpid()}").symlink_to(outside)
        store.save_snapshot(snapshot(4))
        assert store.load_snapshot(4).step == 4
    assert secret.read_text() == "secret" and list(outside.iterdir()) == []
