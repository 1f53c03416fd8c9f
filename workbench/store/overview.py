"""What a page draws a run from: kept up to date in memory that hardly grows with the run."""

from __future__ import annotations

import sqlite3
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd

from workbench.extremes import extremes
from workbench.store import frames, schema

NEWEST = 200
"""Steps of a curve, the newest it was measured at, whose rows all stay."""
OLDER = 400
"""Steps before them that stay at most: those at which it is highest or lowest in its stretch."""
MOST = 900
"""Steps above which it is thinned to these two: well above their sum, so that it is done seldom."""
METRICS_NEWEST, METRICS_OLDER, METRICS_MOST = 400, 1000, 2000
"""The same of metrics, whose rows are steps."""
AT_ONCE = 4096
"""Rows read at once: as Python objects they take ten times the memory."""


class Overview:
    """The live history for drawing: a look reads only what is new, and a rewind starts over.

    Each frame given out is the caller's own. Texts are of dtype object, lists are arrays.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._timelines: list[Any] = []
        self._forget()

    def _forget(self) -> None:
        self._metrics = frames.Metrics(single=True)
        self._metrics_whole_from = 0
        self._tables: dict[str, _Table] = {}

    def frame(self, database: sqlite3.Connection, name: str) -> pd.DataFrame:
        """`metrics` or a table of STEP_ROWS; see `Run.overview`."""
        with self._lock:
            timelines = database.execute("SELECT * FROM timelines").fetchall()
            if timelines != self._timelines:
                self._timelines = timelines
                self._forget()
            if name == "metrics":
                return self._read_metrics(database)
            table = self._tables.setdefault(name, _Table(name))
            table.read(database)
            return table.frame()

    def _read_metrics(self, database: sqlite3.Connection) -> pd.DataFrame:
        self._metrics.read(database)
        frame = self._metrics.frame()
        if len(frame) > METRICS_MOST:
            older = len(frame) - METRICS_NEWEST
            self._metrics_whole_from = int(frame["step"].iloc[older])
            self._metrics.keep([*_kept_metrics(frame[:older]), *range(older, len(frame))])
            frame = self._metrics.frame()
        frame.attrs["whole_from"] = self._metrics_whole_from
        return frame


def _kept_metrics(older: pd.DataFrame) -> list[int]:
    """Positions of at most METRICS_OLDER rows, one a step: the extremes of all but seconds.

    In as many stretches as that allows: where metrics are extreme at the same steps, in more.
    """
    columns = [name for name in older if name != "step" and not name.startswith("seconds/")]
    since = (older["step"] - older["step"].iloc[0]).to_numpy()
    stretches = METRICS_OLDER // 8
    while stretches > 1:
        kept = extremes(older, columns, since * stretches // (since[-1] + 1))
        if len(kept) <= METRICS_OLDER:
            return kept
        stretches //= 2
    return extremes(older, columns, since * 0)


class _Table:
    """Live rows of one table, in packed columns: a text is kept once, a row has its number."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._columns = schema.columns(schema.STEP_ROWS[name])
        self._curves = _CURVES.get(name)
        self._last = 0
        self._whole_from = 0
        self._forget()

    def _forget(self) -> None:
        codes = {"int": "q", "float": "d", "bool": "b", "str": "i"}
        self._values: dict[str, Any] = {
            c.name: array(codes[c.kind]) if c.kind in codes else [] for c in self._columns
        }
        self._numbers: dict[str, int] = {}

    def read(self, database: sqlite3.Connection) -> None:
        """Take in the rows that were added since the last time."""
        query = f'SELECT coalesce(max(rowid), 0) FROM "{self._name}"'
        (end,) = database.execute(query).fetchone()
        listed = schema.listed(database, self._name)
        while self._last < end:
            upto = min(self._last + AT_ONCE, end)
            where = f"rowid > {self._last} AND rowid <= {upto} AND {frames.live(self._name)}"
            query = f'SELECT {listed} FROM "{self._name}" WHERE {where} ORDER BY rowid'
            self._add(
                [c.decode(value) for c, value in zip(self._columns, row, strict=True)]
                for row in database.execute(query)
            )
            self._last = upto
            if self._curves and self._most_steps(self._curves.each) > MOST:
                self._thin(self._curves)

    def _add(self, rows: Iterable[Iterable[Any]]) -> None:
        for row in rows:
            for c, value in zip(self._columns, row, strict=True):
                if c.kind == "str":
                    value = self._numbers.setdefault(value, len(self._numbers))
                elif c.kind == "json":
                    value = np.asarray(value)
                self._values[c.name].append(value)

    def _most_steps(self, each: str) -> int:
        """Steps of the value of a column that has the most."""
        pairs = set(zip(self._values[each], self._values["step"], strict=True))
        return max(Counter(value for value, _ in pairs).values(), default=0)

    def frame(self) -> pd.DataFrame:
        """A copy of what is kept."""
        texts = np.array(list(self._numbers), dtype=object)
        frame = pd.DataFrame({c.name: self._series(c, texts) for c in self._columns})
        frame.attrs["whole_from"] = self._whole_from
        return frame

    def _series(self, column: schema.Column, texts: np.ndarray) -> pd.Series:
        values = self._values[column.name]
        if column.kind == "str":
            return pd.Series(texts[np.array(values)], dtype="object")
        if column.kind != "json":
            values = np.array(values, dtype=column.dtype)
        return pd.Series(values, dtype=column.dtype)

    def _thin(self, curves: _Curves) -> None:
        """Keep the rows of the newest steps, and of the older ones those that hold an extreme."""
        kept = []
        for _, rows in self.frame().groupby(curves.each, sort=False):
            by_step = curves.over(rows).sort_index()
            older, newest = by_step.iloc[:-NEWEST], by_step.index[-NEWEST:]
            if len(older) > OLDER:
                self._whole_from = max(self._whole_from, int(newest[0]))
                steps = [*_steps_with_extremes(older), *newest]
                rows = rows[rows["step"].isin(steps)]
            kept.append(rows)
        self._forget()
        self._add(pd.concat(kept).sort_index().itertuples(index=False))


def _steps_with_extremes(curves: pd.DataFrame) -> pd.Index:
    """At most OLDER steps of the index: where a column is highest or lowest in its stretch.

    The stretches are of equally many steps, so that early ones lose no more than late ones.
    """
    since = (curves.index - curves.index[0]).to_numpy()
    stretches = OLDER // (2 * curves.shape[1])
    group = since * stretches // (since[-1] + 1)
    return curves.index[extremes(curves, curves.columns, group)]


@dataclass(frozen=True)
class _Curves:
    """What is drawn of a table over time."""

    each: str
    """Rows that differ in this column have curves of their own."""
    over: Callable[[pd.DataFrame], pd.DataFrame]
    """Of such rows: a row a step, the index, and a column a curve."""


def _of_alignment(rows: pd.DataFrame) -> pd.DataFrame:
    whole = rows[rows["layer"] == "all"].set_index("step")
    second = whole["second_norm"].where(whole["second_norm"] > 0)
    return pd.DataFrame(
        {
            "cosine": whole["cosine"],
            "ratio": whole["first_norm"] / second,
            "difference": whole["difference_norm"],
            "conflict": rows[rows["layer"] != "all"].groupby("step")["conflict"].mean(),
        }
    )


_CURVES = {
    "gain": _Curves("estimator", lambda rows: rows.groupby("step")[["gain"]].mean()),
    "alignment": _Curves("part", _of_alignment),
    "coordinator": _Curves(
        "layer", lambda rows: rows.groupby("step")[["ratio", "effective_rank"]].mean()
    ),
}
"""By table. The rows of `demonstrations` all stay: their ledger sums them up."""
