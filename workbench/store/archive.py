"""The snapshots of one run: written in the background, kept by the config's rule and budget."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from workbench.config import SnapshotsConfig
from workbench.store import retention, snapshots
from workbench.store.durable import writing
from workbench.store.snapshots import Snapshot


@dataclass(frozen=True)
class Written:
    """What writing a snapshot took."""

    step: int
    folder: Path
    seconds: float
    bytes: int
    """Of all its files."""
    new_bytes: int
    """Of those that no other snapshot had."""


class Archive:
    """Writes, at most one at a time. All calls come from one thread; the writing has its own."""

    def __init__(self, folder: Path, keep: SnapshotsConfig) -> None:
        self.folder, self.keep = folder, keep
        self._under_way: Future[Written] | None = None

    def write(self, snapshot: Snapshot, last: int, stay: Collection[int]) -> Written:
        """Write a snapshot and delete those that are not kept.

        `last` is the newest recorded step, `stay` the steps that are never deleted. Raises
        WriteError, BudgetError; then the snapshots there are as before.
        """
        started = time.perf_counter()
        step, budget = snapshot.step, self.keep.snapshot_budget_mb
        room = retention.make_room(self.folder, budget, stay, exempt=step)
        with writing(f"the snapshot of step {step}"):
            folder = snapshots.write(self.folder, snapshot, room)
            recorded = [s for s in snapshots.steps(self.folder) if s <= last]
            size = retention.own_bytes(folder)
            for old in retention.superfluous(recorded, self.keep, stay):
                snapshots.remove(self.folder, old)
        return Written(step, folder, time.perf_counter() - started, *size)

    def start(
        self, snapshot: Snapshot, last: int, stay: Collection[int], done: Callable[[], None]
    ) -> None:
        """`write` in a thread; `done` is called there in the end. `wait` gives the outcome.

        The arrays of the snapshot must not change meanwhile. None may be under way.
        """
        assert self._under_way is None
        future: Future[Written] = Future()

        def work() -> None:
            try:
                future.set_result(self.write(snapshot, last, stay))
            except BaseException as error:
                future.set_exception(error)
            done()

        self._under_way = future
        threading.Thread(target=work, name="workbench-snapshot", daemon=True).start()

    @property
    def ready(self) -> bool:
        """Whether a write that was started has ended, and its outcome was not taken yet."""
        return self._under_way is not None and self._under_way.done()

    def wait(self) -> Written | None:
        """Wait for the write under way; None where there is none. Raises its error, once."""
        future, self._under_way = self._under_way, None
        return None if future is None else future.result()
