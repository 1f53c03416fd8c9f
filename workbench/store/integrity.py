"""Finding out whether a run folder still holds what was written into it.

Snapshots carry their own sums (checksums.py). Those of the rollouts files, and of the rows that
each step put into `run.sqlite`, are in its table `checksums`.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from workbench.store import checksums, schema, snapshots
from workbench.store.errors import RunFolderError
from workbench.store.folder import (
    DATABASE,
    ROLLOUTS,
    SNAPSHOTS,
    check_rollouts_name,
    damaged_database,
    reading,
)

_LATER = ("seconds/", "snapshot/")
"""Metrics that are added to a step after it was recorded: not in its seal."""


def check_database(database: sqlite3.Connection, folder: Path) -> None:
    """Raises DamagedError, or an error of SQLite's, where it finds `run.sqlite` damaged."""
    found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise damaged_database(folder, found)


def seal_rows(database: sqlite3.Connection, timeline: int, step: int) -> None:
    """Keep the sha256 of all rows a step has on a timeline; the caller commits."""
    digest = _digests(database, step).get((timeline, step), hashlib.sha256())
    schema.write_checksum(database, f"rows/{timeline}/{step}", digest.hexdigest())


def damaged_rows(database: sqlite3.Connection) -> list[str]:
    """A line for each step whose rows in `run.sqlite` are not those that were written."""
    found = []
    digests = _digests(database)
    recorded = set(database.execute("SELECT timeline, step FROM rollouts"))
    for name, sealed in schema.read_checksums(database).items():
        if name.startswith("rows/"):
            timeline, step = map(int, name.split("/")[1:])
            now = digests.get((timeline, step), hashlib.sha256()).hexdigest()
            if now != sealed and (timeline, step) in recorded:
                found.append(f"{DATABASE}: rows of step {step} are not those that were written")
    return found


def _digests(
    database: sqlite3.Connection, step: int | None = None
) -> dict[tuple[int, int], hashlib._Hash]:
    """sha256 of the rows by (timeline, step): of all steps, or of one."""
    digests: dict[tuple[int, int], hashlib._Hash] = defaultdict(hashlib.sha256)
    where, values = ("", ()) if step is None else ("WHERE step = ?", (step,))
    for table in ("rollouts", "metrics", *schema.STEP_ROWS):
        cursor = database.execute(f'SELECT * FROM "{table}" {where} ORDER BY rowid', values)
        names = [column[0] for column in cursor.description]
        at, on = names.index("step"), names.index("timeline")
        for row in cursor:
            if table == "metrics" and row[names.index("name")].startswith(_LATER):
                continue
            # columns that a later workbench adds are NULL in old rows, and change nothing
            kept = [(n, v) for n, v in zip(names, row, strict=True) if v is not None]
            digests[row[on], row[at]].update(json.dumps([table, kept], default=repr).encode())
    return digests


def problems(database: sqlite3.Connection, folder: Path) -> Iterator[str]:
    """A line for each damaged or missing file, and each step with damaged rows, of a run folder.

    Reads every file once.
    """
    try:
        with reading(folder):
            check_database(database, folder)
            yield from damaged_rows(database)
            sums = schema.read_checksums(database)
            files = [f for (f,) in database.execute("SELECT file FROM rollouts WHERE file != ''")]
    except RunFolderError as error:
        yield str(error)
        return
    for file in files:
        try:
            check_rollouts_name(folder, file)
            path, name = folder / ROLLOUTS / file, f"{ROLLOUTS}/{file}"
            if name in sums:
                checksums.check(path, sums[name])
            elif not path.exists():
                yield f"{path} is missing"
        except RunFolderError as error:
            yield str(error)
    for step in snapshots.steps(folder / SNAPSHOTS):
        try:
            snapshots.check(snapshots.folder_of(folder / SNAPSHOTS, step))
        except RunFolderError as error:
            yield str(error)
