"""One writer a run folder: an advisory lock (flock) that ends with the process that holds it."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO

from workbench.store.errors import RunFolderError

NAME = "lock"
"""The lock file in a run folder. It holds the pid of its last holder and is never removed."""


def hold(folder: Path) -> IO[str]:
    """Take the lock of a run folder; closing the file gives it back.

    Raises RunFolderError naming the process that has it, or where we may not write. Tries for a
    fifth of a second, because `is_held` of a reader has the lock for an instant.
    """
    try:
        file = open(folder / NAME, "a+", encoding="utf-8")
    except OSError as error:
        raise RunFolderError(f"cannot write to {folder}: {error.strerror}") from None
    for _ in range(10):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            return file
    file.seek(0)
    holder = file.read()
    file.close()
    which = f"{holder} (this one)" if holder == str(os.getpid()) else holder
    raise RunFolderError(f"{folder} is in use by process {which}; close its Session first")


def is_held(folder: Path) -> bool:
    """Whether a living process has the run folder open for writing."""
    try:
        file = open(folder / NAME, encoding="utf-8")
    except FileNotFoundError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
