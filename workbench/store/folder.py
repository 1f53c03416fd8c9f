"""Where things lie in a run folder, and how to look at its database without disturbing the writer.

config.toml               the config the run started with
run.sqlite                metrics, rows of each step, commands, findings, timelines (WAL)
rollouts/step-000012.parquet, step-000012.t1.parquet    of timeline 0, of timeline 1
snapshots/step-000120/    see snapshots.py
lock                      held by the process that writes
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from workbench.store import lock, schema
from workbench.store.errors import DamagedError, RunFolderError

CONFIG = "config.toml"
DATABASE = "run.sqlite"
ROLLOUTS = "rollouts"
SNAPSHOTS = "snapshots"

_PARTS = (ROLLOUTS, SNAPSHOTS)

ENDED = ("closed", "finished", "failed")
"""States that a run keeps when its process ends; in any other it has crashed."""


def check_readable(folder: Path) -> None:
    """Raises RunFolderError where the folder holds no run, a damaged one or one too new for us."""
    if not (folder / DATABASE).exists():
        raise RunFolderError(f"no run at {folder}")
    for name in (CONFIG, DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", *_PARTS, lock.NAME):
        if (folder / name).is_symlink():
            raise RunFolderError(f"{folder / name} is a link; a run folder holds files only")
    with reading(folder), closing(connect_for_reading(folder)) as database:
        version = database.execute("PRAGMA user_version").fetchone()[0]
        known = database.execute("SELECT count(*) FROM meta").fetchone()[0]
    if version > schema.VERSION:
        raise RunFolderError(
            f"{folder} was written by a newer workbench (run folder version {version}, "
            f"this one knows {schema.VERSION}); update the workbench to open it"
        )
    if not known:
        raise damaged_database(folder, "it has no meta")


def damaged_database(folder: Path, reason: object) -> DamagedError:
    """The error that says `run.sqlite` is damaged and what can be done."""
    shown = " ".join(str(reason).split())
    return DamagedError(
        f"{folder / DATABASE} cannot be read: {shown}; put a copy of this file in its place, or "
        f"rescue its rows with sqlite3's .recover: {ROLLOUTS}/ and {SNAPSHOTS}/ are as they were"
    )


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """What cannot be made of `run.sqlite` inside the block comes out as DamagedError.

    SQLite checks its pages, not their contents: a flipped bit makes a text of a number, JSON that
    is none, or a row of a step that was never recorded.
    """
    try:
        yield
    except (sqlite3.DatabaseError, ValueError, TypeError, KeyError) as error:
        raise damaged_database(folder, error) from error


def check_rollouts_name(folder: Path, file: str) -> None:
    """Raises DamagedError where the index names a rollouts file that is none of the folder's."""
    if not re.fullmatch(r"step-\d{6,}(\.t\d+)?\.parquet", file):
        raise DamagedError(f"{folder / DATABASE} names a rollouts file {file[:80]!r}: not opened")


def connect_for_reading(folder: Path) -> sqlite3.Connection:
    """A connection that cannot write and never makes the writer wait."""
    uri = (folder / DATABASE).absolute().as_uri() + "?mode=ro"
    if not os.access(folder, os.W_OK) and not (folder / f"{DATABASE}-wal").exists():
        uri += "&immutable=1"  # SQLite could not make the files that WAL needs beside the database
    return sqlite3.connect(uri, uri=True)


def rollouts_file(step: int, timeline: int) -> str:
    """Name of the Parquet file of a step on a timeline."""
    return f"step-{step:06d}{f'.t{timeline}' if timeline else ''}.parquet"
