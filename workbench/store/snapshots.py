"""Snapshots of a run's state: one folder a step, whole or absent after a crash.

    snapshots/step-000120/               files of the snapshot, state.json and SHA256SUMS
    snapshots/.writing-step-000120-<pid>  being written
    snapshots/.replaced-step-000120      the older one of the same step, until the newer is in place
    snapshots/.removing-step-000120      being deleted
    snapshots/damaged-step-000120        set aside: a file of it was not what had been written

Folders change their meaning by a rename only; `recover` clears up what a crash left. A file whose
contents another snapshot has already is not written again: it gets a second name (a hard link).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from workbench.store import checksums
from workbench.store.checksums import SUMS
from workbench.store.durable import link_or_copy, remove_tree, sync, sync_tree
from workbench.store.errors import DamagedError
from workbench.store.tensors import TensorFile

STATE = "state.json"


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Everything needed to go on from the end of a step."""

    step: int
    tensors: dict[str, dict[str, np.ndarray]]
    """By relative file name, ending in .safetensors: arrays by name, any shape, no bfloat16."""
    texts: dict[str, str]
    """Other files by relative name, e.g. coordinator/adapter_config.json."""
    state: dict[str, Any]
    """JSON values, kept in state.json."""


class TextFile:
    """A text file to be: `bytes` long, of this `sha256`."""

    def __init__(self, text: str) -> None:
        self._data = text.encode()
        self.bytes = len(self._data)
        self.sha256 = hashlib.sha256(self._data).hexdigest()

    def write(self, path: Path) -> None:
        """Write the file."""
        path.write_bytes(self._data)


def folder_of(snapshots: Path, step: int) -> Path:
    """Where the snapshot of a step lies."""
    return snapshots / f"step-{step:06d}"


def steps(snapshots: Path) -> list[int]:
    """Steps that have a whole snapshot, ascending."""
    found = (re.fullmatch(r"step-(\d{6,})", path.name) for path in snapshots.glob("step-*"))
    return sorted(int(match[1]) for match in found if match)


def write(snapshots: Path, snapshot: Snapshot, make_room: Callable[[int], None]) -> Path:
    """Write a snapshot, replacing one of the same step, and return its folder.

    Files that are there already are linked. `make_room` is called once with the bytes that the
    others will take, before they are written; what it raises leaves no trace.
    """
    recover(snapshots)  # an earlier write may have failed, for lack of space say
    target = folder_of(snapshots, snapshot.step)
    writing = snapshots / f".writing-{target.name}-{os.getpid()}"
    texts = snapshot.texts | {STATE: json.dumps(snapshot.state, indent=1)}
    files: dict[str, TensorFile | TextFile] = {name: TextFile(t) for name, t in texts.items()}
    for name, arrays in snapshot.tensors.items():
        assert name.endswith(".safetensors"), name
        files[name] = TensorFile(arrays)
    sums = {name: file.sha256 for name, file in files.items()}
    files[SUMS] = TextFile(checksums.listing(sums))
    try:
        for name in files:
            assert checksums.is_inside(name), name
            (writing / name).parent.mkdir(parents=True, exist_ok=True)
        shared = _share(snapshots, sums, writing)
        own = {name: file for name, file in files.items() if name not in shared}
        twins = {file.sha256: name for name, file in own.items()}  # equal ones within: once
        make_room(sum(own[name].bytes for name in twins.values()))
        for name in twins.values():
            own[name].write(writing / name)
        for name, file in own.items():
            if name != twins[file.sha256]:
                link_or_copy(writing / twins[file.sha256], writing / name)
        sync_tree(writing)
    except BaseException:
        remove_tree(writing)
        raise
    replaced = snapshots / f".replaced-{target.name}"
    if target.exists():
        os.rename(target, replaced)
    os.rename(writing, target)
    sync(snapshots)
    remove_tree(replaced)
    return target


def _share(snapshots: Path, sums: dict[str, str], writing: Path) -> set[str]:
    """Link what another snapshot has, intact, into `writing`; returns the names of those files."""
    there: dict[str, Path] = {}
    for step in steps(snapshots):  # the newest wins
        folder = folder_of(snapshots, step)
        try:
            there |= {digest: folder / name for name, digest in _sums(folder).items()}
        except DamagedError:
            continue
    shared = set()
    for name, digest in sums.items():
        if digest in there:
            try:
                checksums.check(there[digest], digest)  # damage must not be passed on
                os.link(there[digest], writing / name)
            except (DamagedError, OSError):
                continue
            shared.add(name)
    return shared


def _sums(folder: Path) -> dict[str, str]:
    return checksums.listed(folder) or {}


def read(snapshots: Path, step: int) -> Snapshot:
    """The snapshot of a step.

    Raises DamagedError where a file of it is missing or is not what was written.
    """
    folder = folder_of(snapshots, step)
    check(folder)
    names = [path.relative_to(folder).as_posix() for path in _files(folder)]
    tensors, texts = {}, {}
    for name in names:
        try:
            if name.endswith(".safetensors"):
                tensors[name] = load_file(folder / name)
            elif name not in (STATE, SUMS):
                texts[name] = (folder / name).read_text(encoding="utf-8")
        except (SafetensorError, OSError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise DamagedError(f"{folder / name} is damaged: {reason}") from None
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DamagedError(f"{folder / STATE} is missing") from None
    except (OSError, ValueError) as error:
        raise DamagedError(f"{folder / STATE} is damaged: {error}") from None
    return Snapshot(step, tensors, texts, state)


def check(folder: Path) -> None:
    """Raises DamagedError where a file of a snapshot's folder is not what was written.

    One of an earlier workbench, without SHA256SUMS, is only checked for links.
    """
    if folder.is_symlink():
        raise DamagedError(f"{folder} is a link; a run folder holds files only")
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise DamagedError(f"{path} is a link; a run folder holds files only")
    for name, digest in _sums(folder).items():
        checksums.check(folder / name, digest)


def _files(folder: Path) -> list[Path]:
    """The files that belong to a snapshot; others that someone put there do not."""
    sums = checksums.listed(folder)
    if sums is not None:
        return [folder / name for name in sorted(sums)]
    return sorted(path for path in folder.rglob("*") if path.is_file())


def remove(snapshots: Path, step: int) -> None:
    """Delete the snapshot of a step; a crash leaves it whole or gone."""
    target = folder_of(snapshots, step)
    removing = snapshots / f".removing-{target.name}"
    os.rename(target, removing)
    sync(snapshots)
    remove_tree(removing)


def set_aside(snapshots: Path, step: int) -> Path:
    """Take a damaged snapshot out of use; its files stay, under the name returned."""
    target = folder_of(snapshots, step)
    aside = snapshots / f"damaged-{target.name}"
    remove_tree(aside)
    if target.exists():
        os.rename(target, aside)
        sync(snapshots)
    return aside


def recover(snapshots: Path) -> None:
    """Clear up after a crash or a failed write; a snapshot not yet replaced is put back."""
    for replaced in snapshots.glob(".replaced-step-*"):
        target = snapshots / replaced.name.removeprefix(".replaced-")
        if not target.exists():
            os.rename(replaced, target)
            sync(snapshots)
    for leftover in snapshots.glob(".*-step-*"):
        remove_tree(leftover)
