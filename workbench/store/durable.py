"""Writing files so that a crash leaves the whole old file or the whole new one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


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
    write(beside)
    sync(beside)
    os.replace(beside, path)
    sync(path.parent)
