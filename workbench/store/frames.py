"""The tables of `run.sqlite` as frames, and those of the live history kept up to date."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd

from workbench.store import schema

MARKS = ["timeline", "live"]
"""Columns that tell superseded rows apart."""
AT_ONCE = 4096
"""Rows read at once: as Python objects they take ten times the memory."""


def live(table: str) -> str:
    """SQL: the row of the table belongs to the history that the run stands on."""
    return schema.LIVE.format(table=table)


def rows(database: sqlite3.Connection, table: str, where: str) -> pd.DataFrame:
    """Rows of a table of STEP_ROWS or EVENT_ROWS with MARKS, in the order they were added."""
    names = schema.columns((schema.STEP_ROWS | schema.EVENT_ROWS)[table])
    listed = schema.listed(database, table)
    found = database.execute(
        f'SELECT {listed}, timeline, {live(table)} FROM "{table}" WHERE {where} ORDER BY rowid'
    ).fetchall()
    by_column = list(zip(*found, strict=True)) or [()] * (len(names) + 2)
    frame = {
        c.name: _column(map(c.decode, values), c.dtype)
        for c, values in zip(names, by_column[:-2], strict=True)
    }
    return pd.DataFrame(
        frame
        | {"timeline": _column(by_column[-2], "int64"), "live": _column(by_column[-1], "bool")}
    )


def recorded_steps(database: sqlite3.Connection, where: str) -> pd.DataFrame:
    """Recorded steps in the order they were recorded: step, file, timeline, live."""
    found = database.execute(
        f"SELECT step, file, timeline, {live('rollouts')} FROM rollouts "
        f"WHERE {where} ORDER BY rowid"
    ).fetchall()
    dtypes = {"step": "int64", "file": "str", "timeline": "int64", "live": "bool"}
    by_column = list(zip(*found, strict=True)) or [()] * 4
    return pd.DataFrame(
        {
            name: _column(values, dtype)
            for (name, dtype), values in zip(dtypes.items(), by_column, strict=True)
        }
    )


class _Metrics:
    """A row a recorded step, a column a metric, in the order they appeared. Grows as it reads."""

    def __init__(self, history: bool) -> None:
        self._history = history
        self._steps = pd.DataFrame()
        self._place: dict[tuple[int, int], int] = {}
        self._measured: dict[str, np.ndarray] = {}  # `_room` values each, those to come NaN
        self._room = 0  # grows by a quarter: a step that is added moves nothing in memory
        self._last_step, self._last_value = 0, 0

    def read(self, database: sqlite3.Connection) -> None:
        """Take in the steps and values that were added since the last time."""
        where = "1" if self._history else live("rollouts")
        new = recorded_steps(database, f"{where} AND rowid > {self._last_step}")
        for key in zip(new["step"], new["timeline"], strict=True):
            self._place[key] = len(self._place)
        self._steps = _behind(self._steps, new)
        if len(self._place) > self._room:
            self._room = len(self._place) * 5 // 4 + 64
            for name, values in self._measured.items():
                self._measured[name] = np.full(self._room, np.nan)
                self._measured[name][: len(values)] = values
        where = "1" if self._history else live("metrics")
        for row, step, timeline, name, value in database.execute(
            f"SELECT rowid, step, timeline, name, value FROM metrics "
            # the last row once more: one that replaces it takes its number
            f"WHERE {where} AND rowid >= {self._last_value} ORDER BY rowid"
        ):
            if name not in self._measured:
                self._measured[name] = np.full(self._room, np.nan)
            if value is not None:
                self._measured[name][self._place[step, timeline]] = value
            self._last_value = row
        self._last_step = max(self._last_step, _last_row(database, "rollouts"))

    def frame(self) -> pd.DataFrame:
        """A copy of what was read, with MARKS."""
        measured = {name: values[: len(self._place)] for name, values in self._measured.items()}
        marks = {mark: self._steps[mark] for mark in MARKS}
        return pd.DataFrame({"step": self._steps["step"], **measured, **marks}, copy=True)


class _Rows:
    """The live rows of one table. Grows as it reads.

    Kept in pieces, each more than twice as long as the next: what was read long ago is moved
    seldom, since memory moved at each step, each time to a larger place, leaves holes everywhere.
    """

    def __init__(self, table: str) -> None:
        self._table = table
        self._pieces: list[pd.DataFrame] = []
        self._last = 0

    def read(self, database: sqlite3.Connection) -> None:
        """Take in the rows that were added since the last time."""
        last = _last_row(database, self._table)
        for first in range(self._last, last, AT_ONCE) or [last]:
            some = f"rowid > {first} AND rowid <= {min(first + AT_ONCE, last)}"
            new = rows(database, self._table, f"{live(self._table)} AND {some}")
            while self._pieces and len(self._pieces[-1]) <= 2 * len(new):
                new = _behind(self._pieces.pop(), new)
            if len(new) or not self._pieces:
                self._pieces.append(new)
        self._last = max(self._last, last)

    def frame(self) -> pd.DataFrame:
        """A copy of what was read, with MARKS."""
        return pd.concat(self._pieces, ignore_index=True)


def metrics(database: sqlite3.Connection) -> pd.DataFrame:
    """All metrics, superseded ones too, with MARKS."""
    everything = _Metrics(history=True)
    everything.read(database)
    return everything.frame()


class LiveFrames:
    """Frames of the live history that read on from where the last look ended.

    What grows with each step is kept in memory, so that a page that looks each second reads only
    what is new; a rewind starts over. Each frame given out is the caller's own.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._timelines: list[Any] = []
        self._metrics = _Metrics(history=False)
        self._rows: dict[str, _Rows] = {}

    def metrics(self, database: sqlite3.Connection) -> pd.DataFrame:
        """The live metrics, with MARKS."""
        with self._lock:
            self._start_over_after_a_rewind(database)
            self._metrics.read(database)
            return self._metrics.frame()

    def rows(self, database: sqlite3.Connection, table: str) -> pd.DataFrame:
        """The live rows of a table of STEP_ROWS, with MARKS."""
        with self._lock:
            self._start_over_after_a_rewind(database)
            known = self._rows.setdefault(table, _Rows(table))
            known.read(database)
            return known.frame()

    def _start_over_after_a_rewind(self, database: sqlite3.Connection) -> None:
        timelines = database.execute("SELECT * FROM timelines").fetchall()
        if timelines != self._timelines:
            self._timelines, self._rows = timelines, {}
            self._metrics = _Metrics(history=False)


def _behind(known: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """`new` below `known`, of the same columns; `known` may have none yet."""
    if not len(known):
        return new
    return pd.concat([known, new], ignore_index=True) if len(new) else known


def _last_row(database: sqlite3.Connection, table: str) -> int:
    return int(database.execute(f'SELECT coalesce(max(rowid), 0) FROM "{table}"').fetchone()[0])


def _column(values: Iterable[Any], dtype: str) -> pd.Series:
    return pd.Series(list(values), dtype=dtype)
