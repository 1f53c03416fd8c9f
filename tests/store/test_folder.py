"""Who may open which folder."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from workbench.store import RunFolderError, RunStore, WriteError, open_run


def test_a_folder_holds_one_run(tmp_path, config):
    RunStore.create(tmp_path / "run", config).close()
    with pytest.raises(RunFolderError, match=r"holds a run already; go on with Session.resume\('"):
        RunStore.create(tmp_path / "run", config)


def test_an_empty_folder_is_fine_and_a_file_is_not(tmp_path, config):
    (tmp_path / "empty").mkdir()
    RunStore.create(tmp_path / "empty", config).close()
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="cannot make a run at .*file: "):
        RunStore.create(tmp_path / "file", config)


@pytest.mark.parametrize("open_it", [RunStore.open, open_run])
def test_no_run_damaged_run_newer_run(open_it, tmp_path, config):
    with pytest.raises(RunFolderError, match=f"^no run at {tmp_path / 'run'}$"):
        open_it(tmp_path / "run")
    RunStore.create(tmp_path / "run", config).close()
    database = sqlite3.connect(tmp_path / "run/run.sqlite")
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(RunFolderError, match="newer workbench .* 99, this one knows 1"):
        open_it(tmp_path / "run")
    (tmp_path / "run/run.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(RunFolderError, match="run.sqlite cannot be read: "):
        open_it(tmp_path / "run")


def test_one_writer_in_a_process(tmp_path, config):
    with RunStore.create(tmp_path / "run", config):
        with pytest.raises(RunFolderError, match=rf"in use by process {os.getpid()} \(this one\)"):
            RunStore.open(tmp_path / "run")
    RunStore.open(tmp_path / "run").close()


def test_one_writer_among_processes_and_a_killed_one_reads_as_crashed(tmp_path, config, record):
    with RunStore.create(tmp_path / "run", config) as store:
        store.append(record(1))
    code = (
        "import sys\n"
        "from workbench.store import RunStore\n"
        "store = RunStore.open(sys.argv[1])\n"
        "store.set_status('running')\n"
        "print('opened', flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "opened\n"
    run = open_run(tmp_path / "run")
    assert run.state == "running" and run.meta["pid"] == process.pid
    with pytest.raises(RunFolderError, match=f"in use by process {process.pid} since 2.*: close"):
        RunStore.open(tmp_path / "run")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert run.state == "crashed" and len(run.frame("metrics")) == 1
    with RunStore.open(tmp_path / "run") as store:
        assert run.state == "idle" and store.last_step() == 1
    assert run.state == "closed"


@pytest.mark.parametrize("state", ["finished", "failed"])
def test_closing_keeps_how_it_ended(state, tmp_path, config):
    with RunStore.create(tmp_path / "run", config) as store:
        store.set_status(state)
    assert open_run(tmp_path / "run").state == state


def test_a_copied_run_opens_without_its_empty_folders_and_lock(tmp_path, config, record):
    with RunStore.create(tmp_path / "run", config) as store:
        store.append(record(1, rollouts=0))
    (tmp_path / "copy").mkdir()
    for name in ("config.toml", "run.sqlite"):
        shutil.copy(tmp_path / "run" / name, tmp_path / "copy" / name)
    run = open_run(tmp_path / "copy")
    assert run.last_step() == 1 and run.snapshot_steps() == [] and run.state == "closed"
    with RunStore.open(tmp_path / "copy") as store:
        store.append(record(2))
    assert run.last_step() == 2


def test_files_of_the_user_are_left_alone(tmp_path, config):
    RunStore.create(tmp_path / "run", config).close()
    mine = [tmp_path / "run/rollouts/notes.txt", tmp_path / "run/snapshots/.DS_Store"]
    for file in mine:
        file.touch()
    RunStore.open(tmp_path / "run").close()
    assert all(file.exists() for file in mine)
    assert open_run(tmp_path / "run").snapshot_steps() == []


def test_who_has_a_run_open_and_since_when(tmp_path, config):
    with RunStore.create(tmp_path / "run", config):
        holder = open_run(tmp_path / "run").holder
        assert holder.pid == os.getpid() and time.time() - 60 < holder.since <= time.time()
        clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.since))
        with pytest.raises(RunFolderError, match=rf"since {clock}: .*; open_run\('.*'\) reads it"):
            RunStore.open(tmp_path / "run")
        (tmp_path / "run/lock").write_text("123")  # as an earlier workbench wrote it
        with pytest.raises(RunFolderError, match="in use by process 123: close"):
            RunStore.open(tmp_path / "run")
    assert open_run(tmp_path / "run").holder is None


@pytest.mark.parametrize("removed", ["lock", "run.sqlite"])
def test_who_removes_the_lock_or_the_database_under_a_run_does_not_get_two_writers(
    removed, tmp_path, config, record
):
    store = RunStore.create(tmp_path / "run", config)
    store.append(record(1))
    (tmp_path / "run" / removed).unlink()
    if removed == "lock":
        with RunStore.open(tmp_path / "run") as other:
            other.append(record(2))
    with pytest.raises(WriteError, match="step 2 was not written: .*lock or run.sqlite was rem"):
        store.append(record(2))
    if removed == "run.sqlite":
        with pytest.raises(WriteError):
            store.close()
    else:
        store.close()
        with RunStore.open(tmp_path / "run") as again:
            assert again.last_step() == 2


def test_a_read_only_folder_is_read_and_not_written(config, record):
    folder = Path(tempfile.mkdtemp()) / "run"  # not tmp_path: that is closed to other users
    with RunStore.create(folder, config) as store:
        store.append(record(1))
    folder.parent.chmod(0o755)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    said, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setuid(65534)  # root may write anywhere
            steps = len(open_run(folder).frame("rollouts")), open_run(folder).state
            RunStore.open(folder)
        except RunFolderError as error:
            os.write(write, f"{steps} {error}".encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with open(said) as pipe:
        assert re.fullmatch(
            r"\(2, 'closed'\) cannot write to .*run: Permission denied; open_run\('.*'\) reads it",
            pipe.read(),
        )
    shutil.rmtree(folder.parent)
