"""Writing files so that a crash leaves the whole old file or the whole new one."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from workbench.store.errors import WriteError


def sync(path: Path) -> None:
    """Flush one file, or the entries of one directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush every file and directory below `folder`, and `folder` itself."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def write_durably(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, then put it in the place of `path`.

    The file beside is hidden: `.writing-<name>`. A crash may leave it, never half of `path`.
    """
    beside = path.with_name(f".writing-{path.name}")
    remove_tree(beside)  # whatever lies there: a link would lead the writing elsewhere
    try:
        write(beside)
        sync(beside)
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)  # half a file on a full disk would keep it full
        raise
    sync(path.parent)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give a file a second name; a copy where the file system cannot.

    Files of a run are replaced, never written in place, so snapshots and runs can share them.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def remove_tree(path: Path) -> None:
    """Delete a file, a link (not what it points to) or a whole folder; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Errors of the disk inside the block come out as WriteError: `what` was not written, why."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        reason = " ".join(str(error).split())
        raise WriteError(
            f"{what} was not written: {reason}; free some space, or see that the folder can be "
            "written, then go on: all before it is kept"
        ) from error
