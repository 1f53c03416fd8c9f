"""One writer a run folder: an advisory lock (flock) that ends with the process that holds it."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from workbench.store.errors import RunFolderError

NAME = "lock"
"""The lock file in a run folder: pid and time of its last holder. It is never removed."""


@dataclass(frozen=True)
class Holder:
    """The process that writes a run folder."""

    pid: int
    since: float
    """Unix time; 0 where an earlier workbench did not say."""

    def __str__(self) -> str:
        this = " (this one)" if self.pid == os.getpid() else ""
        if not self.since:
            return f"process {self.pid}{this}"
        clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid}{this} since {clock}"


def hold(folder: Path) -> IO[str]:
    """Take the lock of a run folder; closing the file gives it back.

    Raises RunFolderError naming the process that has it, or where we may not write. Tries for a
    fifth of a second, because `holder` of a reader has the lock for an instant.
    """
    try:
        file = open(folder / NAME, "a+", encoding="utf-8", opener=_without_links)
    except OSError as error:
        raise RunFolderError(
            f"cannot write to {folder}: {error.strerror}; open_run({str(folder)!r}) reads it"
        ) from None
    for _ in range(10):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            file.truncate(0)
            with suppress(OSError):  # the disk is full: held all the same, without a name on it
                os.write(file.fileno(), f"{os.getpid()} {time.time():.3f}".encode())
            return file
    file.seek(0)
    found = _parse(file.read())
    file.close()
    raise RunFolderError(
        f"{folder} is in use by {found or 'another process'}: close its Session first; "
        f"open_run({str(folder)!r}) reads it meanwhile"
    )


def is_ours(folder: Path, held: IO[str]) -> bool:
    """Whether the lock file of the folder is still the one we hold; else two may write at once."""
    try:
        there = os.stat(folder / NAME, follow_symlinks=False)
    except OSError:
        return False
    return os.path.samestat(there, os.fstat(held.fileno()))


def holder(folder: Path) -> Holder | None:
    """The living process that has the run folder open for writing; None where there is none."""
    try:
        file = open(folder / NAME, encoding="utf-8", opener=_without_links)
    except OSError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _parse(file.read()) or Holder(0, 0.0)
    return None


def _parse(text: str) -> Holder | None:
    pid, _, since = text.partition(" ")
    return Holder(int(pid), float(since or 0)) if pid.isdecimal() else None


def _without_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)
