"""Run: reads a run folder that is finished, crashed or being written, without a model in memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.config import RunConfig
from workbench.records import StepRecord
from workbench.store import (
    checksums,
    evaluations,
    frames,
    integrity,
    lock,
    retention,
    schema,
    snapshots,
)
from workbench.store.errors import DamagedError, RunFolderError
from workbench.store.folder import (
    CONFIG,
    DATABASE,
    ENDED,
    ROLLOUTS,
    SNAPSHOTS,
    check_readable,
    check_rollouts_name,
    connect_for_reading,
    reading,
)
from workbench.store.frames import live
from workbench.store.overview import Overview


def open_run(path: str | Path) -> Run:
    """Open a run folder for reading.

    Raises RunFolderError where there is no run, a damaged one, or one of a newer workbench.
    """
    folder = Path(path)
    check_readable(folder)
    return Run(folder)


class Run:
    """Reads one run folder; each call sees the newest committed step. Made by `open_run`.

    Calls raise RunFolderError where the folder, or a file that it names, has gone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._overview = Overview()

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @cached_property
    def config(self) -> RunConfig:
        """The config the run started with; later changes are the "set" commands."""
        return RunConfig.load(self.path / CONFIG)

    @property
    def meta(self) -> dict[str, Any]:
        """created, updated (Unix times), state, pid, forked_from, and what `create` was given."""
        with self._reading() as database:
            return schema.read_meta(database)

    @property
    def state(self) -> str:
        """The state its Session told last; "crashed" where that Session is no more."""
        holder = self.holder  # asked first: a closing Session tells, then lets go
        state = self.meta["state"]
        return state if holder or state in ENDED else "crashed"

    @property
    def holder(self) -> lock.Holder | None:
        """The process that has the run open for writing, and since when; None: nobody has."""
        return lock.holder(self.path)

    def problems(self) -> list[str]:
        """A line for each file, and each step's rows, that are not what was written.

        Reads the whole folder once. What a run of an earlier workbench has no sums of is not
        checked but for being there.
        """
        with self._reading() as database:
            return list(integrity.problems(database, self.path))

    def config_at(self, step: int) -> RunConfig:
        """The config that a step was taken under: as started, with the live "set"s before it.

        Which demonstrations were set aside is left out. Raises RunFolderError for the steps of a
        fork's trunk, whose config is in the trunk's folder.
        """
        meta = self.meta
        first = int(meta.get("forked_from", {}).get("step", 0)) + 1
        if step < first:
            raise RunFolderError(f"{self.path} has the config of steps from {first} on, not {step}")
        with self._reading() as database:
            where = (
                "name = 'set' AND outcome = 'done' AND step < ? AND timeline >= ? "
                f"AND {live('commands')}"
            )
            changes = schema.select(database, "commands", where, step, meta["config_timeline"])
        config = self.config
        for row in changes:
            config = config.with_changes(**row.arguments)
        return config

    def last_step(self) -> int:
        """The newest step of the live history; 0 before the first."""
        with self._reading() as database:
            return schema.last_step(database)

    def events(self) -> int:
        """Commands and findings so far, superseded ones too: all rows of frames of these names."""
        with self._reading() as database:
            counts = (f'SELECT count(*) FROM "{table}"' for table in schema.EVENT_ROWS)
            return sum(database.execute(query).fetchone()[0] for query in counts)

    def snapshot_steps(self) -> list[int]:
        """Steps of the live history that have a snapshot, ascending."""
        last = self.last_step()
        return [step for step in snapshots.steps(self.path / SNAPSHOTS) if step <= last]

    def snapshots(self) -> pd.DataFrame:
        """The snapshots of the live history, a row each, ascending by step.

        step; bytes of its files; own_bytes, which deleting it would free: other snapshots, and
        forks, share the rest; seconds that writing it took beside the training, NaN where that is
        not known; pinned.
        """
        pinned = self.meta.get(schema.PINNED, [])
        with self._reading() as database:
            where = f"name = 'seconds/snapshot' AND {live('metrics')}"
            took = dict(database.execute(f"SELECT step, value FROM metrics WHERE {where}"))
        rows = []
        for step in self.snapshot_steps():
            size, own = retention.own_bytes(snapshots.folder_of(self.path / SNAPSHOTS, step))
            rows.append((step, size, own, took.get(step, np.nan), step in pinned))
        dtypes = {
            "step": "int64",
            "bytes": "int64",
            "own_bytes": "int64",
            "seconds": "float64",
            "pinned": "bool",
        }
        return pd.DataFrame(rows, columns=list(dtypes)).astype(dtypes)

    def metric_names(self) -> list[str]:
        """Metrics that the run has measured, superseded ones too, in the order they appeared."""
        with self._reading() as database:
            query = "SELECT name FROM metrics GROUP BY name ORDER BY min(rowid)"
            return [name for (name,) in database.execute(query)]

    def frame(
        self, name: str, history: bool = False, only: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """One table of the run, the live history only; `history` adds superseded rows.

        metrics: one row a step, `step` first, then a column a metric in the order they appeared;
        NaN where not measured. The others: a column a field of the row class in records.py; lists
        are Python lists, in rollouts NumPy arrays. commands and findings are always whole, with a
        column `live`. `history` adds the columns `timeline` (0: the first, +1 by each rewind) and
        `live`. `only`: of metrics those of these names that there are, which is read much faster.

        Raises RunFolderError for an unknown name.
        """
        if name not in schema.FRAMES:
            raise RunFolderError(f"no frame {name!r}; there are {', '.join(schema.FRAMES)}")
        with self._reading() as database:
            if name == "rollouts":
                frame = self._all_rollouts(database, history)
            elif name in schema.EVENT_ROWS:
                frame = frames.rows(database, name, "1")
            elif name == "metrics":
                frame = frames.metrics(database, history, only)
            else:
                frame = frames.rows(database, name, "1" if history else live(name))
        if history:
            return frame
        return frame.drop(columns=["timeline"] if name in schema.EVENT_ROWS else frames.MARKS)

    def overview(self, name: str) -> pd.DataFrame:
        """What to draw `frame(name)` from, again and again: each look reads only what is new.

        gain, alignment, coordinator: all rows of the newest steps; where a run is long, of the
        steps before `attrs["whole_from"]` those at which a curve of its figures is highest or
        lowest in its stretch. metrics: likewise, from 2,000 steps on, in single precision.
        demonstrations: all, and what is kept in memory for it grows with them alone.

        Raises RunFolderError for another name.
        """
        if name not in (known := ("metrics", *schema.STEP_ROWS)):
            raise RunFolderError(f"no overview of {name!r}; there are {', '.join(known)}")
        with self._reading() as database:
            return self._overview.frame(database, name)

    def rollouts(self, step: int) -> pd.DataFrame:
        """The rollouts of one live step, as in frame("rollouts").

        Raises RunFolderError where the step was not recorded.
        """
        with self._reading() as database:
            return schema.rollouts_frame(self._rollouts(database, step))

    def record(self, step: int) -> StepRecord:
        """All that one live step measured. Raises RunFolderError where it was not recorded."""
        with self._reading() as database:
            rollouts = schema.rollout_rows(self._rollouts(database, step))
            metrics = database.execute(
                f"SELECT name, value FROM metrics WHERE step = ? AND {live('metrics')} "
                "ORDER BY rowid",
                (step,),
            )
            return StepRecord(
                step=step,
                metrics={name: _number(value) for name, value in metrics},
                rollouts=rollouts,
                **{
                    table: schema.select(database, table, f"step = ? AND {live(table)}", step)
                    for table in schema.STEP_ROWS
                },
            )

    def evaluations(self) -> pd.DataFrame:
        """Scores of `python -m workbench eval` on this run, a row each, oldest first.

        evaluation (its name), step, set, policy, metric, value, low, high (95 %), n_problems.
        """
        return evaluations.scores(self.path / evaluations.EVALUATIONS)

    def evaluation(self, name: str) -> pd.DataFrame:
        """The completions of an evaluation, a row each. Raises RunFolderError: there is no such."""
        return evaluations.completions(self.path / evaluations.EVALUATIONS, name)

    def __repr__(self) -> str:
        return "\n".join(self._summary())

    def _repr_html_(self) -> str:
        first, *others = map(escape, self._summary())
        return f"<div><b>{first}</b><br>{'<br>'.join(others)}</div>"

    def _summary(self) -> list[str]:
        last = self.last_step()
        lines = [
            f"Run {self.name}: {self.state}, {last} step{'' if last == 1 else 's'} "
            f"of {self.config.method}",
            f"folder {self.path}",
        ]
        if "forked_from" in self.meta:
            origin = self.meta["forked_from"]
            lines.append(f"forked from {origin['run']} at step {origin['step']}")
        if last:
            metrics = self.frame("metrics").drop(columns="step").ffill().iloc[-1]
            shown = [name for name in _HEADLINES if name in metrics]
            lines.append(", ".join(f"{name} {metrics[name]:.3g}" for name in shown))
        lines.append(f"snapshots {', '.join(map(str, self.snapshot_steps())) or 'none'}")
        return [line for line in lines if line]

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A short read transaction: all queries in it see the same steps."""
        if not (self.path / DATABASE).exists():
            raise RunFolderError(f"no run at {self.path}")
        with reading(self.path), closing(connect_for_reading(self.path)) as database:
            database.execute("BEGIN")
            yield database

    def _rollouts(self, database: sqlite3.Connection, step: int) -> pa.Table:
        query = f"SELECT file FROM rollouts WHERE step = ? AND {live('rollouts')}"
        found = database.execute(query, (step,)).fetchone()
        if found is None:
            last = schema.last_step(database)
            raise RunFolderError(f"{self.path} has no step {step}; its last is {last}")
        return self._read_file(database, found[0])

    def _all_rollouts(self, database: sqlite3.Connection, history: bool) -> pd.DataFrame:
        index = frames.recorded_steps(database, "1" if history else live("rollouts"))
        tables = [self._read_file(database, file) for file in index["file"]]
        whole = pa.concat_tables([schema.ROLLOUTS.empty_table(), *tables])
        frame = schema.rollouts_frame(whole)
        sizes = [len(table) for table in tables]
        return frame.assign(
            **{mark: np.repeat(index[mark].to_numpy(), sizes) for mark in frames.MARKS}
        )

    def _read_file(self, database: sqlite3.Connection, file: str) -> pa.Table:
        if not file:
            return schema.ROLLOUTS.empty_table()
        check_rollouts_name(self.path, file)
        path = self.path / ROLLOUTS / file
        sha256 = schema.read_checksums(database, f"{ROLLOUTS}/{file}").get(f"{ROLLOUTS}/{file}")
        if sha256 is not None:
            checksums.check(path, sha256)
        elif path.is_symlink():
            raise DamagedError(f"{path} is a link; a run folder holds files only")
        try:
            with pq.ParquetFile(path) as parquet:
                return schema.with_all_columns(parquet.read())
        except FileNotFoundError:
            raise DamagedError(f"{path} is missing") from None
        except (OSError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise DamagedError(f"{path} cannot be read: {reason}") from None


_HEADLINES = ("reward", "baseline/reward", "eval/accuracy", "gain/shared", "kl")


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
