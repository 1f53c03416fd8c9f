"""sha256 sums of files: written beside a snapshot as `SHA256SUMS`, checked when it is read.

The format is coreutils': `sha256sum -c SHA256SUMS` in a snapshot's folder checks it by hand.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from workbench.store.errors import DamagedError

SUMS = "SHA256SUMS"
"""Name of the list in a snapshot's folder. Snapshots of earlier workbenches have none."""

_CHUNK = 1 << 20


def sha256_of(file: Path) -> str:
    """The sha256 of a file's contents, in hex."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def listing(sums: Mapping[str, str]) -> str:
    """The text of a SHA256SUMS file; `sums` has hex digests by relative file name."""
    return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))


def listed(folder: Path) -> dict[str, str] | None:
    """What a folder's SHA256SUMS says: hex digests by relative file name; None without the file.

    Raises DamagedError where it is no such list, or names a file outside the folder.
    """
    file = folder / SUMS
    if not file.exists():
        return None
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise DamagedError(f"{file} is damaged") from None
    sums = {}
    for line in lines:
        match = re.fullmatch(r"([0-9a-f]{64})  (.+)", line)
        if match is None or not is_inside(match[2]):
            raise DamagedError(f"{file} is damaged: {line[:80]!r} is no line of it")
        sums[match[2]] = match[1]
    return sums


def is_inside(name: str) -> bool:
    """Whether a relative file name stays in its folder: no '..', not absolute, no backslash."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and name != "."


def check(file: Path, sha256: str) -> None:
    """Raises DamagedError where the file is gone, a link, or not what was written."""
    if file.is_symlink():
        raise DamagedError(f"{file} is a link; a run folder holds files only")
    try:
        found = sha256_of(file)
    except FileNotFoundError:
        raise DamagedError(f"{file} is missing") from None
    except OSError as error:
        raise DamagedError(f"{file} cannot be read: {error.strerror}") from None
    if found != sha256:
        raise DamagedError(f"{file} is damaged: its sha256 is not the one recorded")
