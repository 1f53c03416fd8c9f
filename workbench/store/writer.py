"""RunStore: the one writer of a run folder.

A step counts as recorded once its SQLite transaction is committed. Its rollouts file is written
before, so a crash between the two leaves a file that no row names; `open` removes it.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import pyarrow.parquet as pq

from workbench.config import RunConfig
from workbench.records import CommandRow, Finding, StepRecord
from workbench.store import lock, schema, snapshots
from workbench.store.durable import sync, sync_tree, write_durably
from workbench.store.errors import RunFolderError
from workbench.store.folder import (
    CONFIG,
    DATABASE,
    ENDED,
    ROLLOUTS,
    SNAPSHOTS,
    check_readable,
    rollouts_file,
)
from workbench.store.snapshots import Snapshot


class RunStore:
    """Writes one run folder. Made by `create`, `open` or `fork`; for one thread at a time.

    `path` is absolute. `config` is the config the run started with. `timeline` is the current one.
    """

    path: Path
    config: RunConfig
    timeline: int

    def __init__(self, path: Path, held: IO[str]) -> None:
        self.path = path.absolute()
        self.config = RunConfig.load(path / CONFIG)
        self._lock = held
        self._db = sqlite3.connect(self.path / DATABASE, check_same_thread=False)
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    @classmethod
    def create(cls, path: str | Path, config: RunConfig, **meta: Any) -> RunStore:
        """Start a run in a new folder; `meta` holds JSON values that `Run.meta` gives back.

        Raises RunFolderError where the folder holds a run already or cannot be made.
        """
        folder = Path(path)
        try:
            for part in (ROLLOUTS, SNAPSHOTS):
                (folder / part).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"cannot make a run at {path}: {error.strerror}") from None
        _check_free(folder)
        with ExitStack() as stack:
            held = stack.enter_context(lock.hold(folder))
            _check_free(folder)
            _write_text(folder / CONFIG, config.to_toml())
            write_durably(folder / DATABASE, lambda file: _make_database(file, meta))
            store = cls(folder, held)
            stack.pop_all()
        return store

    @classmethod
    def open(cls, path: str | Path) -> RunStore:
        """Go on with a run, after clearing up what a crash may have left.

        Raises RunFolderError where there is no run, another process has it, or it is too new.
        """
        folder = Path(path)
        check_readable(folder)
        with ExitStack() as stack:
            store = cls(folder, stack.enter_context(lock.hold(folder)))
            stack.pop_all()
        return store

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")  # a snapshot must never outlive its steps
        with self._db:
            schema.add_missing_columns(self._db)
        self.timeline = self._db.execute("SELECT max(timeline) FROM timelines").fetchone()[0]
        for part in (ROLLOUTS, SNAPSHOTS):
            (self.path / part).mkdir(exist_ok=True)  # a copied run may have lost empty folders
        snapshots.recover(self._snapshots)
        self._remove_snapshots_after(self.last_step())
        named = {file for (file,) in self._db.execute("SELECT file FROM rollouts")}
        for file in (self.path / ROLLOUTS).glob("*step-*.parquet"):
            if file.name not in named:
                file.unlink()
        self.set_status("idle")

    @property
    def _snapshots(self) -> Path:
        return self.path / SNAPSHOTS

    def append(self, record: StepRecord) -> None:
        """Record one step: its rollouts file, then all its rows in one transaction."""
        assert record.step == self.last_step() + 1, (record.step, self.last_step())
        step, file = record.step, ""
        if record.rollouts:
            file = rollouts_file(step, self.timeline)
            table = schema.rollouts_table(record.rollouts)
            write_durably(
                self.path / ROLLOUTS / file,
                lambda beside: pq.write_table(table, beside, compression="zstd"),
            )
        with self._db:
            self._db.execute("INSERT INTO rollouts VALUES (?, ?, ?)", (self.timeline, step, file))
            self._db.executemany(
                "INSERT INTO metrics VALUES (?, ?, ?, ?)",
                [(self.timeline, step, name, float(v)) for name, v in record.metrics.items()],
            )
            for table_name in schema.STEP_ROWS:
                rows = vars(record)[table_name]
                assert all(row.step == step for row in rows), table_name
                schema.insert(self._db, table_name, self.timeline, rows)
            schema.write_meta(self._db, {"updated": time.time()})

    def add_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Add metrics to a recorded step, e.g. what recording it cost."""
        with self._db:
            self._db.executemany(
                "INSERT INTO metrics VALUES (?, ?, ?, ?)",
                [(self.timeline, step, name, float(v)) for name, v in metrics.items()],
            )

    def add_command(self, row: CommandRow) -> None:
        """Record a command on the current timeline; its arguments are JSON values."""
        with self._db:
            schema.insert(self._db, "commands", self.timeline, [row])

    def add_finding(self, row: Finding) -> None:
        """Record a finding on the current timeline; its evidence is JSON values."""
        with self._db:
            schema.insert(self._db, "findings", self.timeline, [row])

    def set_status(self, state: str) -> None:
        """Tell readers the state of the run, with this process's pid and the time."""
        with self._db:
            schema.write_meta(
                self._db, {"state": state, "pid": os.getpid(), "updated": time.time()}
            )

    def last_step(self) -> int:
        """The newest live step; 0 before the first."""
        return schema.last_step(self._db)

    def rewind(self, to_step: int) -> int:
        """Go back to the end of a step: start a new timeline there and return its number.

        Later rows stay, superseded; later snapshots are deleted. Raises RunFolderError where the
        step was not recorded.
        """
        self._check_step("rewind to", to_step)
        with self._db:
            self.timeline = _start_timeline(self._db, to_step)
        self._remove_snapshots_after(to_step)
        return self.timeline

    def save_snapshot(self, snapshot: Snapshot) -> Path:
        """Write a snapshot, whole or not at all, and delete those the config does not keep.

        It replaces one of the same step. It is offered once its step is recorded. The first of a
        fork is kept: its config begins there.
        """
        folder = snapshots.write(self._snapshots, snapshot)
        first = schema.read_meta(self._db).get("forked_from", {}).get("step", 0)
        for step in snapshots.superfluous(self.snapshot_steps(), self.config.snapshots):
            if step != first:
                snapshots.remove(self._snapshots, step)
        return folder

    def load_snapshot(self, step: int) -> Snapshot:
        """Read a snapshot. Raises RunFolderError where there is none of that step."""
        there = self.snapshot_steps()
        if step not in there:
            listed = ", ".join(map(str, there)) or "none"
            raise RunFolderError(f"{self.path} has no snapshot of step {step}; there are: {listed}")
        return snapshots.read(self._snapshots, step)

    def snapshot_steps(self) -> list[int]:
        """Recorded steps of the live history that have a snapshot, ascending."""
        last = self.last_step()
        return [step for step in snapshots.steps(self._snapshots) if step <= last]

    def live_commands(self, *names: str) -> list[CommandRow]:
        """The commands of these names that were done and hold on the live history, in order.

        `config` with those that change it ("set", …) applied is what the run stands on. So in a
        fork that was given its own config, those of the parent are left out.
        """
        since = schema.read_meta(self._db)["config_timeline"]
        named = f"name IN ({', '.join('?' for _ in names)})"
        where = f"{named} AND outcome = 'done' AND timeline >= ? AND {_live('commands')}"
        return schema.select(self._db, "commands", where, *names, since)

    def fork(
        self,
        path: str | Path,
        at_step: int,
        config: RunConfig | None = None,
        start: Snapshot | None = None,
    ) -> RunStore:
        """Start a new run from the end of a step of this one, and open it.

        It gets the live history up to the step and the snapshots up to it (as hard links where the
        file system can), and goes on in a timeline of its own. `config` replaces the config, live
        changes included, and `start` the snapshot of the step. Raises RunFolderError where the
        folder exists or the step is not recorded.
        """
        target = Path(path).absolute()
        self._check_step("fork at", at_step)
        if target.exists():
            raise RunFolderError(f"{path} exists already; choose another folder for the fork")
        building = target.with_name(f".forking-{target.name}-{os.getpid()}")
        try:
            for part in (ROLLOUTS, SNAPSHOTS):
                (building / part).mkdir(parents=True)
        except OSError as error:
            raise RunFolderError(f"cannot make a run at {path}: {error.strerror}") from None
        try:
            self._copy_history(building, target, at_step, config)
            if start is not None:
                snapshots.write(building / SNAPSHOTS, start)
            sync_tree(building)
            os.rename(building, target)
            sync(target.parent)
        except BaseException:
            shutil.rmtree(building)
            raise
        return RunStore.open(target)

    def _copy_history(
        self, building: Path, target: Path, at_step: int, config: RunConfig | None
    ) -> None:
        _write_text(building / CONFIG, (config or self.config).to_toml())
        with closing(sqlite3.connect(building / DATABASE)) as copy:
            copy.execute("PRAGMA synchronous = OFF")  # the whole folder is flushed in the end
            self._db.backup(copy)
            with copy:
                for table in ("rollouts", "metrics", *schema.STEP_ROWS, *schema.EVENT_ROWS):
                    copy.execute(
                        f'DELETE FROM "{table}" WHERE step > ? OR NOT {_live(table)}', (at_step,)
                    )
                timeline = _start_timeline(copy, at_step)
                origin = {
                    "run": self.path.name,
                    "path": os.path.relpath(self.path, target),
                    "step": at_step,
                    "timeline": timeline,
                }
                schema.write_meta(copy, {"created": time.time(), "forked_from": origin})
                if config is not None:
                    schema.write_meta(copy, {"config_timeline": timeline})
            for (file,) in copy.execute("SELECT file FROM rollouts WHERE file != ''"):
                _link(self.path / ROLLOUTS / file, building / ROLLOUTS / file)
        for step in self.snapshot_steps():
            if step <= at_step:
                source = snapshots.folder_of(self._snapshots, step)
                copied = snapshots.folder_of(building / SNAPSHOTS, step)
                shutil.copytree(source, copied, copy_function=_link)

    def close(self) -> None:
        """Give the folder back. The state becomes "closed", unless it is "finished" or "failed"."""
        if schema.read_meta(self._db)["state"] not in ENDED:
            self.set_status("closed")
        self._db.close()
        self._lock.close()

    def discard(self) -> None:
        """Close a run that never began and take its files away, so the folder can be used again."""
        assert self.last_step() == 0
        self.close()
        for part in (ROLLOUTS, SNAPSHOTS):
            shutil.rmtree(self.path / part)
        for file in (CONFIG, lock.NAME, DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"):
            (self.path / file).unlink(missing_ok=True)
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def __enter__(self) -> RunStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _check_step(self, doing: str, step: int) -> None:
        last = self.last_step()
        if not 0 <= step <= last:
            raise RunFolderError(f"cannot {doing} step {step}: {self.path} has steps 0 to {last}")

    def _remove_snapshots_after(self, step: int) -> None:
        for later in snapshots.steps(self._snapshots):
            if later > step:
                snapshots.remove(self._snapshots, later)


def _check_free(folder: Path) -> None:
    if (folder / DATABASE).exists():
        raise RunFolderError(
            f"{folder} holds a run already; go on with Session.resume({str(folder)!r}) "
            "or choose another folder"
        )


def _make_database(file: Path, meta: dict[str, Any]) -> None:
    file.unlink(missing_ok=True)
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("PRAGMA synchronous = OFF")  # write_durably flushes the whole file
        schema.create_tables(database)
        database.execute("INSERT INTO timelines VALUES (0, 0, ?)", (time.time(),))
        start = {"created": time.time(), "config_timeline": 0, "state": "idle"}
        schema.write_meta(database, {**meta, **start})


def _start_timeline(database: sqlite3.Connection, from_step: int) -> int:
    timeline = database.execute("SELECT max(timeline) + 1 FROM timelines").fetchone()[0]
    database.execute("INSERT INTO timelines VALUES (?, ?, ?)", (timeline, from_step, time.time()))
    return timeline


def _live(table: str) -> str:
    return schema.LIVE.format(table=table)


def _link(source: str | Path, target: str | Path) -> None:
    # Files of a run are replaced, never written in place, so two runs can share them.
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _write_text(path: Path, text: str) -> None:
    def write(beside: Path) -> None:
        beside.write_text(text, encoding="utf-8")

    write_durably(path, write)
