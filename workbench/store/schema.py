"""Tables of `run.sqlite` and columns of a rollouts file, made from the dataclasses in records.py.

Every row carries the timeline it was written on. A rewind starts a new timeline and deletes no row:
a row (step, timeline) is live if no later timeline started before its step. See `LIVE`.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pandas as pd
import pyarrow as pa

from workbench.records import (
    AlignmentRow,
    CommandRow,
    CoordinatorRow,
    DemonstrationRow,
    Finding,
    GainRow,
    RolloutRow,
)

VERSION = 1
"""Version of the run folder, in SQLite's user_version; raised when an old reader would err."""

STEP_ROWS: dict[str, type] = {
    "gain": GainRow,
    "demonstrations": DemonstrationRow,
    "alignment": AlignmentRow,
    "coordinator": CoordinatorRow,
}
"""Tables that a step fills, besides metrics and rollouts; named as the fields of StepRecord."""

EVENT_ROWS: dict[str, type] = {"commands": CommandRow, "findings": Finding}
"""Tables that the Session fills between and during steps."""

FRAMES = ("metrics", "rollouts", *STEP_ROWS, *EVENT_ROWS)
"""Names of all frames."""

LIVE = """NOT EXISTS (
    SELECT 1 FROM timelines AS later
    WHERE later.timeline > "{table}".timeline AND later.from_step < "{table}".step
)"""
"""SQL condition: the row of `table` belongs to the history that the run stands on."""

PINNED = "pinned"
"""Entry of the table `meta`: steps whose snapshots no rule deletes."""

_SQL_TYPES = {"bool": "INTEGER", "int": "INTEGER", "float": "REAL", "str": "TEXT", "json": "TEXT"}
_DTYPES = {"bool": "bool", "int": "int64", "float": "float64", "str": "str", "json": "object"}
_ARROW_TYPES = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "str": pa.string()}


@dataclass(frozen=True)
class Column:
    """One field of a row class."""

    name: str
    kind: Literal["bool", "int", "float", "str", "json"]
    """json: a list or dict, kept as JSON text."""
    item: str = ""
    """Kind of a list's items."""

    @property
    def dtype(self) -> str:
        """The column's pandas dtype, the same for a frame without rows."""
        return _DTYPES[self.kind]

    def encode(self, value: Any) -> Any:
        """The value as SQLite keeps it; SQLite makes NULL of NaN."""
        if self.kind == "json":
            return json.dumps(value)
        return float(value) if self.kind == "float" else value

    def decode(self, value: Any) -> Any:
        """The value as the row class has it; NULL is NaN, and nothing where there is no NaN.

        NULL is what a column has that the run was written without.
        """
        if self.kind == "json":
            if value is None:
                return [] if self.item else {}
            return json.loads(value)
        if value is None and self.kind != "float":
            return {"int": 0, "str": "", "bool": False}[self.kind]
        if self.kind == "float":
            return float("nan") if value is None else value
        return bool(value) if self.kind == "bool" else value


@cache
def columns(row_class: type) -> tuple[Column, ...]:
    """The columns of a row class, in the order of its fields."""
    hints = get_type_hints(row_class)
    return tuple(_column(field.name, hints[field.name]) for field in fields(row_class))


def _column(name: str, hint: Any) -> Column:
    if get_origin(hint) is Literal:
        return Column(name, "str")
    if get_origin(hint) is list:
        return Column(name, "json", item=get_args(hint)[0].__name__)
    if get_origin(hint) is dict:
        return Column(name, "json")
    return Column(name, hint.__name__)


# A row a sealed thing: 'rollouts/<file>', or 'rows/<timeline>/<step>'. See integrity.py.
_CHECKSUMS = "CREATE TABLE IF NOT EXISTS checksums (name TEXT PRIMARY KEY, sha256 TEXT NOT NULL)"


def create_tables(database: sqlite3.Connection) -> None:
    """Make the tables of an empty `run.sqlite`."""
    # One row a recorded step; file is empty where the step drew no rollouts.
    database.executescript(
        """
        CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
        CREATE TABLE timelines (
            timeline INTEGER PRIMARY KEY, from_step INTEGER NOT NULL, created REAL NOT NULL
        );
        CREATE TABLE rollouts (
            timeline INTEGER NOT NULL, step INTEGER NOT NULL, file TEXT NOT NULL,
            PRIMARY KEY (step, timeline)
        );
        CREATE TABLE metrics (
            timeline INTEGER NOT NULL, step INTEGER NOT NULL, name TEXT NOT NULL, value REAL,
            PRIMARY KEY (step, timeline, name)
        );
        """
    )
    database.execute(_CHECKSUMS)
    for table, row_class in (STEP_ROWS | EVENT_ROWS).items():
        typed = ", ".join(f'"{c.name}" {_SQL_TYPES[c.kind]}' for c in columns(row_class))
        database.execute(f'CREATE TABLE "{table}" (timeline INTEGER NOT NULL, {typed})')
        database.execute(f'CREATE INDEX "{table}_step" ON "{table}" (step, timeline)')
    database.execute(f"PRAGMA user_version = {VERSION}")


def add_missing_columns(database: sqlite3.Connection) -> None:
    """Bring a run of an earlier workbench up to date; the caller commits. Old rows have NULL."""
    database.execute(_CHECKSUMS)
    for table, row_class in (STEP_ROWS | EVENT_ROWS).items():
        there = _names(database, table)
        for c in columns(row_class):
            if c.name not in there:
                database.execute(f'ALTER TABLE "{table}" ADD "{c.name}" {_SQL_TYPES[c.kind]}')


def listed(database: sqlite3.Connection, table: str) -> str:
    """The columns of the table's row class as SQL: NULL for one the run was written without."""
    there = _names(database, table)
    names = [c.name for c in columns((STEP_ROWS | EVENT_ROWS)[table])]
    return ", ".join(f'"{name}"' if name in there else "NULL" for name in names)


def _names(database: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in database.execute(f'PRAGMA table_info("{table}")')}


def insert(database: sqlite3.Connection, table: str, timeline: int, rows: Iterable[object]) -> None:
    """Add rows of the table's row class; the caller commits."""
    names = columns((STEP_ROWS | EVENT_ROWS)[table])
    quoted = ", ".join(f'"{c.name}"' for c in names)
    marks = ", ".join("?" for _ in names)
    database.executemany(
        f'INSERT INTO "{table}" (timeline, {quoted}) VALUES (?, {marks})',
        ((timeline, *(c.encode(vars(row)[c.name]) for c in names)) for row in rows),
    )


def write_metrics(
    database: sqlite3.Connection, timeline: int, step: int, metrics: Mapping[str, float]
) -> None:
    """Add metrics of a step, replacing those of the same name; the caller commits."""
    database.executemany(
        "INSERT OR REPLACE INTO metrics VALUES (?, ?, ?, ?)",
        [(timeline, step, name, float(value)) for name, value in metrics.items()],
    )


def write_checksum(database: sqlite3.Connection, name: str, sha256: str) -> None:
    """Set an entry of the table `checksums`; the caller commits."""
    database.execute("INSERT OR REPLACE INTO checksums VALUES (?, ?)", (name, sha256))


def read_checksums(database: sqlite3.Connection, name: str | None = None) -> dict[str, str]:
    """The table `checksums`, or its entry `name`; empty in a run of an earlier workbench."""
    if not _names(database, "checksums"):
        return {}
    where, values = ("", ()) if name is None else ("WHERE name = ?", (name,))
    return dict(database.execute(f"SELECT name, sha256 FROM checksums {where}", values))


def timeline_of(database: sqlite3.Connection, step: int) -> int:
    """The timeline on which a live step was recorded."""
    where = LIVE.format(table="rollouts")
    query = f"SELECT timeline FROM rollouts WHERE step = ? AND {where}"
    return database.execute(query, (step,)).fetchone()[0]


def start_timeline(database: sqlite3.Connection, from_step: int) -> int:
    """Add a timeline that leaves the history at the end of a step; returns its number."""
    timeline = database.execute("SELECT max(timeline) + 1 FROM timelines").fetchone()[0]
    database.execute("INSERT INTO timelines VALUES (?, ?, ?)", (timeline, from_step, time.time()))
    return timeline


def select(database: sqlite3.Connection, table: str, where: str, *values: object) -> list[Any]:
    """Rows of the table as objects of its row class, in the order they were added.

    `where` is SQL; it may use LIVE.
    """
    row_class = (STEP_ROWS | EVENT_ROWS)[table]
    names = columns(row_class)
    query = f'SELECT {listed(database, table)} FROM "{table}" WHERE {where} ORDER BY rowid'
    return [
        row_class(**{c.name: c.decode(value) for c, value in zip(names, row, strict=True)})
        for row in database.execute(query, values)
    ]


def last_step(database: sqlite3.Connection) -> int:
    """The newest live step; 0 before the first."""
    where = LIVE.format(table="rollouts")
    return database.execute(
        f"SELECT coalesce(max(step), 0) FROM rollouts WHERE {where}"
    ).fetchone()[0]


def read_meta(database: sqlite3.Connection) -> dict[str, Any]:
    """All of the table `meta`."""
    return {key: json.loads(value) for key, value in database.execute("SELECT * FROM meta")}


def write_meta(database: sqlite3.Connection, values: Mapping[str, Any]) -> None:
    """Set entries of the table `meta`; the caller commits."""
    database.executemany(
        "INSERT OR REPLACE INTO meta VALUES (?, ?)",
        [(key, json.dumps(value)) for key, value in values.items()],
    )


def _arrow_type(c: Column) -> pa.DataType:
    if c.kind == "json":
        return pa.list_(_ARROW_TYPES[c.item]) if c.item else pa.string()
    return _ARROW_TYPES[c.kind]


ROLLOUTS = pa.schema([(c.name, _arrow_type(c)) for c in columns(RolloutRow)])
"""Schema of a rollouts file: one row a completion, token arrays as native lists, dicts as JSON."""

_DICTS = [c.name for c in columns(RolloutRow) if c.kind == "json" and not c.item]


def with_all_columns(table: pa.Table) -> pa.Table:
    """A rollouts file's table; a column that an earlier workbench did not write is NaN or empty."""
    for i, c in enumerate(columns(RolloutRow)):
        if c.name not in table.column_names:
            missing = "{}" if c.name in _DICTS else c.decode(None)
            column = pa.array([missing] * len(table), _arrow_type(c))
            table = table.add_column(i, ROLLOUTS.field(c.name), [column])
    return table


def rollouts_frame(table: pa.Table) -> pd.DataFrame:
    """The rows of an Arrow table of schema ROLLOUTS as a frame."""
    frame = table.to_pandas()
    return frame.assign(**{name: _loaded(frame[name]) for name in _DICTS})


def rollout_rows(table: pa.Table) -> list[RolloutRow]:
    """The rows of an Arrow table of schema ROLLOUTS as objects."""
    return [
        RolloutRow(**row | {name: json.loads(row[name]) for name in _DICTS})
        for row in table.to_pylist()
    ]


def _loaded(texts: pd.Series) -> pd.Series:
    return pd.Series([json.loads(text) for text in texts], index=texts.index, dtype=object)


def rollouts_table(rows: list[RolloutRow]) -> pa.Table:
    """The rows as an Arrow table of schema ROLLOUTS."""

    def values(name: str) -> list[Any]:
        found = [vars(row)[name] for row in rows]
        return [json.dumps(value) for value in found] if name in _DICTS else found

    return pa.table(
        [pa.array(values(column.name), column.type) for column in ROLLOUTS], schema=ROLLOUTS
    )
