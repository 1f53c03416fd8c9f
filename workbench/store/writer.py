"""RunStore: the one writer of a run folder.

A step counts as recorded once its SQLite transaction is committed. Its rollouts file is written
before, so a crash between the two leaves a file that no row names; `open` removes it.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import pyarrow.parquet as pq

from workbench.config import RunConfig
from workbench.records import CommandRow, Finding, StepRecord
from workbench.store import creation, forking, integrity, lock, schema, snapshots
from workbench.store.archive import Archive, Written
from workbench.store.checksums import sha256_of
from workbench.store.durable import write_durably, writing
from workbench.store.errors import DamagedError, RunFolderError, WriteError
from workbench.store.folder import (
    CONFIG,
    DATABASE,
    ENDED,
    ROLLOUTS,
    SNAPSHOTS,
    check_readable,
    reading,
    rollouts_file,
)
from workbench.store.snapshots import Snapshot


class RunStore:
    """Writes one run folder. Made by `create`, `open` or `fork`; for one thread at a time.

    `path` is absolute. `config` is the config the run started with. `timeline` is the current one.
    Writing raises WriteError where the disk is full or broken; what was recorded before stands.
    """

    path: Path
    config: RunConfig
    timeline: int
    damage: list[str]
    """What was found damaged when the run was opened, a line each; the run can go on."""

    def __init__(self, path: Path, held: IO[str]) -> None:
        self.path = path.absolute()
        self.config = RunConfig.load(path / CONFIG)
        self._lock = held
        self._archive = Archive(self.path / SNAPSHOTS, self.config.snapshots)
        self._failures: list[RunFolderError] = []
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
        creation.check_free(folder)
        with ExitStack() as stack, writing(f"the run at {path}"):
            held = stack.enter_context(lock.hold(folder))
            creation.check_free(folder)
            creation.write_config(folder, config)
            write_durably(folder / DATABASE, lambda file: creation.make_database(file, meta))
            store = cls(folder, held)
            stack.pop_all()
        return store

    @classmethod
    def open(cls, path: str | Path) -> RunStore:
        """Go on with a run, after clearing up what a crash may have left.

        Raises RunFolderError where there is no run, another process has it, it is too new, or its
        database is damaged.
        """
        folder = Path(path)
        check_readable(folder)
        with ExitStack() as stack:
            store = cls(folder, stack.enter_context(lock.hold(folder)))
            stack.pop_all()
        return store

    def _prepare(self) -> None:
        with reading(self.path):  # before anything is cleared up by what it says
            integrity.check_database(self._db, self.path)
            self.damage = integrity.damaged_rows(self._db)
            self.timeline = self._db.execute("SELECT max(timeline) FROM timelines").fetchone()[0]
            last = self.last_step()
            named = {file for (file,) in self._db.execute("SELECT file FROM rollouts")}
            schema.read_meta(self._db)
        with writing(str(self.path / DATABASE)):
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")  # a snapshot must never outlive its steps
            with self._db:
                schema.add_missing_columns(self._db)
            for part in (ROLLOUTS, SNAPSHOTS):
                (self.path / part).mkdir(exist_ok=True)  # a copied run may have lost empty folders
            snapshots.recover(self._archive.folder)
            if self.damage:  # what belongs to the run may look like a crash's leftover: kept
                for step in snapshots.steps(self._archive.folder):
                    if step > last:
                        snapshots.set_aside(self._archive.folder, step)
            else:
                self._remove_snapshots_after(last)
                for file in (self.path / ROLLOUTS).glob("*step-*.parquet"):
                    if file.name not in named:
                        file.unlink()
        self.set_status("idle")

    @contextmanager
    def _transaction(self, what: str) -> Iterator[None]:
        """All the statements of the block, or none. Raises WriteError: `what` was not written."""
        if not lock.is_ours(self.path, self._lock) or not (self.path / DATABASE).exists():
            raise WriteError(
                f"{what} was not written: {self.path / lock.NAME} or {DATABASE} was removed while "
                "this process had the run open, and another may have it now; close this session"
            )
        with writing(what), self._db:
            yield

    def append(self, record: StepRecord) -> None:
        """Record one step: its rollouts file, then all its rows in one transaction."""
        step, file = record.step, ""
        with self._transaction(f"step {step}"):
            assert step == self.last_step() + 1, (step, self.last_step())
            if record.rollouts:
                file = rollouts_file(step, self.timeline)
                table = schema.rollouts_table(record.rollouts)
                path = self.path / ROLLOUTS / file
                write_durably(
                    path, lambda beside: pq.write_table(table, beside, compression="zstd")
                )
                schema.write_checksum(self._db, f"{ROLLOUTS}/{file}", sha256_of(path))
            self._db.execute("INSERT INTO rollouts VALUES (?, ?, ?)", (self.timeline, step, file))
            schema.write_metrics(self._db, self.timeline, step, record.metrics)
            for table_name in schema.STEP_ROWS:
                rows = vars(record)[table_name]
                assert all(row.step == step for row in rows), table_name
                schema.insert(self._db, table_name, self.timeline, rows)
            integrity.seal_rows(self._db, self.timeline, step)
            schema.write_meta(self._db, {"updated": time.time()})

    def add_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Add metrics to a live step, e.g. what recording it cost; those of a name it has go."""
        timeline = schema.timeline_of(self._db, step)
        with self._transaction(f"metrics of step {step}"):
            schema.write_metrics(self._db, timeline, step, metrics)

    def add_command(self, row: CommandRow) -> None:
        """Record a command on the current timeline; its arguments are JSON values."""
        with self._transaction(f"the command {row.name!r}"):
            schema.insert(self._db, "commands", self.timeline, [row])

    def add_finding(self, row: Finding) -> None:
        """Record a finding on the current timeline; its evidence is JSON values."""
        with self._transaction("a finding"):
            schema.insert(self._db, "findings", self.timeline, [row])

    def set_status(self, state: str, **more: Any) -> None:
        """Tell readers the state of the run, with this process's pid, the time and `more`."""
        now = {"state": state, "pid": os.getpid(), "updated": time.time(), **more}
        with self._transaction("the run's state"):
            schema.write_meta(self._db, now)

    def last_step(self) -> int:
        """The newest live step; 0 before the first."""
        return schema.last_step(self._db)

    def rewind(self, to_step: int) -> int:
        """Go back to the end of a step: start a new timeline there and return its number.

        Later rows stay, superseded; later snapshots are deleted, pinned ones too. Raises
        RunFolderError where the step was not recorded.
        """
        self._check_step("rewind to", to_step)
        self.settle()
        pinned = [step for step in self.pinned() if step <= to_step]
        with self._transaction("the rewind"):
            self.timeline = schema.start_timeline(self._db, to_step)
            schema.write_meta(self._db, {schema.PINNED: pinned})
        self._remove_snapshots_after(to_step)
        return self.timeline

    # --- snapshots --------------------------------------------------------------------------

    def save_snapshot(self, snapshot: Snapshot) -> Path:
        """Write a snapshot, whole or not at all, and delete those the config does not keep.

        It replaces one of the same step. It is offered once its step is recorded. The first of a
        fork is kept: its config begins there. Raises WriteError; BudgetError where it would not
        fit in `snapshot_budget_mb` though all that may go went.
        """
        self.settle()
        written = self._archive.write(snapshot, self.last_step(), self._stay())
        self._note(written)
        return written.folder

    def start_snapshot(self, snapshot: Snapshot, done: Callable[[], None] = lambda: None) -> None:
        """`save_snapshot` in the background, after the one under way; `done` is called in a thread.

        The snapshot's arrays must not change meanwhile. What goes wrong is in `failures` once
        `settle` was called, by the caller or by anything here that needs the snapshots.
        """
        self.settle()
        self._archive.start(snapshot, self.last_step(), self._stay(), done)

    @property
    def snapshot_ended(self) -> bool:
        """Whether a snapshot that was started is written, or failed, and nobody asked yet."""
        return self._archive.ready or bool(self._failures)

    def settle(self) -> None:
        """Wait for the snapshot under way and note what it took, or that it failed."""
        try:
            written = self._archive.wait()
            if written is not None:
                self._note(written)
        except RunFolderError as error:
            self._failures.append(error)

    def failures(self) -> list[RunFolderError]:
        """Why snapshots were not written in the background since this was asked last."""
        found, self._failures = self._failures, []
        return found

    def _note(self, written: Written) -> None:
        if 0 < written.step <= self.last_step():
            metrics = {
                "seconds/snapshot": written.seconds,
                "snapshot/bytes": written.bytes,
                "snapshot/new_bytes": written.new_bytes,
            }
            self.add_metrics(written.step, metrics)

    def load_snapshot(self, step: int) -> Snapshot:
        """Read a snapshot. Raises RunFolderError where there is none of that step, or a damaged."""
        there = self.snapshot_steps()
        if step not in there:
            listed = ", ".join(map(str, there)) or "none"
            raise RunFolderError(f"{self.path} has no snapshot of step {step}; there are: {listed}")
        try:
            return snapshots.read(self._archive.folder, step)
        except DamagedError as error:
            older = ", ".join(str(s) for s in there if s < step) or "none"
            raise DamagedError(f"{error}; older snapshots: {older}") from None

    def nearest_snapshot(self, up_to: int) -> tuple[Snapshot | None, list[DamagedError]]:
        """The newest intact snapshot of a step up to `up_to`, and what was found damaged before.

        Damaged ones are set aside as `snapshots/damaged-step-…`. None where no intact one is left.
        """
        found: list[DamagedError] = []
        for step in reversed([s for s in self.snapshot_steps() if s <= up_to]):
            try:
                return snapshots.read(self._archive.folder, step), found
            except DamagedError as error:
                with writing(f"snapshots/damaged-step-{step:06d}"):
                    snapshots.set_aside(self._archive.folder, step)
                found.append(error)
        return None, found

    def snapshot_steps(self) -> list[int]:
        """Recorded steps of the live history that have a snapshot, ascending."""
        self.settle()
        last = self.last_step()
        return [step for step in snapshots.steps(self._archive.folder) if step <= last]

    def pinned(self) -> list[int]:
        """Steps whose snapshots no rule and no budget deletes, ascending."""
        return schema.read_meta(self._db).get(schema.PINNED, [])

    def pin(self, step: int) -> None:
        """Keep the snapshot of a step until it is unpinned, or a rewind goes back before it.

        Raises RunFolderError where there is none.
        """
        there = self.snapshot_steps()
        if step not in there:
            listed = ", ".join(map(str, there)) or "none"
            raise RunFolderError(f"pin: there is no snapshot of step {step}; there are: {listed}")
        self._write_pinned({*self.pinned(), step})

    def unpin(self, step: int) -> None:
        """Treat the snapshot of a step like others again. Raises RunFolderError: not pinned."""
        if step not in self.pinned():
            listed = ", ".join(map(str, self.pinned())) or "none"
            raise RunFolderError(f"unpin: step {step} is not pinned; pinned are: {listed}")
        self._write_pinned({*self.pinned()} - {step})

    def _write_pinned(self, steps: set[int]) -> None:
        with self._transaction("the list of pinned snapshots"):
            schema.write_meta(self._db, {schema.PINNED: sorted(steps)})

    def _stay(self) -> set[int]:
        return {0, self.first_step(), *self.pinned()}

    def first_step(self) -> int:
        """The step this run starts from: 0, or the one where it was forked."""
        return int(schema.read_meta(self._db).get("forked_from", {}).get("step", 0))

    # --- history ----------------------------------------------------------------------------

    def live_commands(self, *names: str) -> list[CommandRow]:
        """The commands of these names that were done and hold on the live history, in order.

        `config` with those that change it ("set", …) applied is what the run stands on. So in a
        fork that was given its own config, those of the parent are left out.
        """
        since = schema.read_meta(self._db)["config_timeline"]
        named = f"name IN ({', '.join('?' for _ in names)})"
        live = schema.LIVE.format(table="commands")
        where = f"{named} AND outcome = 'done' AND timeline >= ? AND {live}"
        with reading(self.path):
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
        self.settle()
        with writing(f"the fork at {path}"):
            forking.fork(self._db, self.path, target, at_step, self.config, config, start)
        return RunStore.open(target)

    # --- the end ----------------------------------------------------------------------------

    def close(self) -> None:
        """Give the folder back. The state becomes "closed", unless it is "finished" or "failed"."""
        try:
            self.settle()
            if schema.read_meta(self._db)["state"] not in ENDED:
                self.set_status("closed")
        finally:
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
        for later in snapshots.steps(self._archive.folder):
            if later > step:
                with writing(f"the removal of the snapshot of step {later}"):
                    snapshots.remove(self._archive.folder, later)
