"""The tables of `run.sqlite` as frames, whole."""

from __future__ import annotations

import sqlite3
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Any

import numpy as np
import pandas as pd

from workbench.store import schema

MARKS = ["timeline", "live"]
"""Columns that tell superseded rows apart."""
_LARGEST = float(np.finfo("float32").max)


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


def metrics(
    database: sqlite3.Connection, history: bool, only: Sequence[str] | None = None
) -> pd.DataFrame:
    """Metrics with MARKS; `history`: superseded ones too; `only`: these, of those there are."""
    steps = recorded_steps(database, "1" if history else live("rollouts"))
    values = Metrics(history, only=only)
    values.read(database)
    return values.frame().assign(**{mark: steps[mark] for mark in MARKS})


class Metrics:
    """A row a recorded step, a column a metric, in the order they appeared. Reads on when asked."""

    def __init__(
        self, history: bool = False, single: bool = False, only: Sequence[str] | None = None
    ) -> None:
        """history: superseded steps too; single: in single precision, half as large; only: these.

        None: all.
        """
        self._history, self._single = history, single
        self._only = () if only is None else tuple(only)
        self._wanted = "1" if only is None else f"name IN ({', '.join('?' for _ in only)})"
        self._steps = array("q")
        self._places: dict[tuple[int, int], int] = {}  # (step, timeline): place, with history
        self._values: dict[str, array[float]] = {}
        self._last_step, self._last_value = 0, 0
        self._thinned = False

    def read(self, database: sqlite3.Connection) -> None:
        """Take in the steps and values that were added since the last time."""
        where = "1" if self._history else live("rollouts")
        new = database.execute(
            f"SELECT rowid, step, timeline FROM rollouts "
            f"WHERE {where} AND rowid > {self._last_step} ORDER BY rowid"
        ).fetchall()
        for row, step, timeline in new:
            if self._history:
                self._places[step, timeline] = len(self._steps)
            self._steps.append(step)
            self._last_step = row
        for values in self._values.values():
            values.extend([np.nan] * len(new))
        where = "1" if self._history else live("metrics")
        for row, step, timeline, name, value in database.execute(
            f"SELECT rowid, step, timeline, name, value FROM metrics "
            # the last row once more: one that replaces it takes its number
            f"WHERE {where} AND {self._wanted} AND rowid >= {self._last_value} ORDER BY rowid",
            self._only,
        ):
            if name not in self._values:
                unknown = [np.nan] * len(self._steps)
                self._values[name] = array("f" if self._single else "d", unknown)
            place = self._place(step, timeline)
            if value is not None and place is not None:
                self._values[name][place] = self._fitting(value)
            self._last_value = row

    def frame(self) -> pd.DataFrame:
        """A copy of what was read."""
        steps = np.array(self._steps, dtype="int64")  # numpy takes "q" for another type of integer
        values = {name: np.array(values) for name, values in self._values.items()}
        return pd.DataFrame({"step": steps, **values})

    def keep(self, places: Sequence[int]) -> None:
        """Forget all rows but these, the newest among them; for live ones alone."""
        self._thinned = True
        self._steps = array("q", [self._steps[place] for place in places])
        for name, values in self._values.items():
            self._values[name] = array(values.typecode, [values[place] for place in places])

    def _place(self, step: int, timeline: int) -> int | None:
        """Where a step's values are; None: forgotten. Raises KeyError where it was not recorded."""
        if self._history:
            return self._places[step, timeline]
        at = bisect_left(self._steps, step)  # live steps ascend
        if self._steps[at : at + 1] != array("q", [step]):
            if self._thinned:
                return None
            raise KeyError(step)
        return at

    def _fitting(self, value: float) -> float:
        """What single precision does not hold stays finite."""
        if self._single and isfinite(value):
            return min(max(value, -_LARGEST), _LARGEST)
        return value


def _column(values: Iterable[Any], dtype: str) -> pd.Series:
    return pd.Series(list(values), dtype=dtype)
