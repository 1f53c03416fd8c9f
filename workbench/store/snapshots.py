"""Snapshots of a run's state: one folder a step, whole or absent after a crash.

    snapshots/step-000120/               files of the snapshot, and state.json
    snapshots/.writing-step-000120-<pid>  being written
    snapshots/.replaced-step-000120      the older one of the same step, until the newer is in place
    snapshots/.removing-step-000120      being deleted

Folders change their meaning by a rename only; `recover` clears up what a crash left.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from workbench.config import SnapshotsConfig
from workbench.store.durable import sync, sync_tree

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


def folder_of(snapshots: Path, step: int) -> Path:
    """Where the snapshot of a step lies."""
    return snapshots / f"step-{step:06d}"


def steps(snapshots: Path) -> list[int]:
    """Steps that have a whole snapshot, ascending."""
    found = (re.fullmatch(r"step-(\d{6,})", path.name) for path in snapshots.glob("step-*"))
    return sorted(int(match[1]) for match in found if match)


def write(snapshots: Path, snapshot: Snapshot) -> Path:
    """Write a snapshot, replacing one of the same step, and return its folder."""
    recover(snapshots)  # an earlier write may have failed, for lack of space say
    target = folder_of(snapshots, snapshot.step)
    writing = snapshots / f".writing-{target.name}-{os.getpid()}"
    for name, arrays in snapshot.tensors.items():
        assert name.endswith(".safetensors"), name
        file = writing / name
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(arrays, file, metadata={"format": "pt"})  # transformers asks for the format
    for name, text in (snapshot.texts | {STATE: json.dumps(snapshot.state, indent=1)}).items():
        file = writing / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    sync_tree(writing)
    replaced = snapshots / f".replaced-{target.name}"
    if target.exists():
        os.rename(target, replaced)
    os.rename(writing, target)
    sync(snapshots)
    if replaced.exists():
        shutil.rmtree(replaced)
    return target


def read(snapshots: Path, step: int) -> Snapshot:
    """The snapshot of a step; raises FileNotFoundError where there is none."""
    folder = folder_of(snapshots, step)
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    tensors, texts = {}, {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        if file.suffix == ".safetensors":
            tensors[name] = load_file(file)
        elif name != STATE:
            texts[name] = file.read_text(encoding="utf-8")
    return Snapshot(step, tensors, texts, state)


def remove(snapshots: Path, step: int) -> None:
    """Delete the snapshot of a step; a crash leaves it whole or gone."""
    target = folder_of(snapshots, step)
    removing = snapshots / f".removing-{target.name}"
    os.rename(target, removing)
    sync(snapshots)
    shutil.rmtree(removing)


def recover(snapshots: Path) -> None:
    """Clear up after a crash or a failed write; a snapshot not yet replaced is put back."""
    for replaced in snapshots.glob(".replaced-step-*"):
        target = snapshots / replaced.name.removeprefix(".replaced-")
        if not target.exists():
            os.rename(replaced, target)
            sync(snapshots)
    for leftover in snapshots.glob(".*-step-*"):
        shutil.rmtree(leftover)


def superfluous(recorded: list[int], keep: SnapshotsConfig) -> list[int]:
    """Which of the ascending steps go: not step 0, not the newest, not a kept multiple."""
    newest = set(recorded[-keep.keep_last :])
    return [
        step
        for step in recorded
        if step not in newest
        and step != 0
        and not (keep.keep_every and step % keep.keep_every == 0)
    ]
