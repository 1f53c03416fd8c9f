"""A run that the app only reads: another process has it, or its folder cannot be written."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from workbench.config import RunConfig
from workbench.session import Session
from workbench.store import open_run
from workbench.store.folder import DATABASE
from workbench.tasks import Problem
from workbench.tasks.problem import Split
from workbench.worker import Progress, SessionError, Worker


class ReadOnlySession(Session):
    """What a Session shows of a run, from its folder alone: no model is loaded, nothing is written.

    Whatever would need the model or change the run raises SessionError, saying why.
    """

    def __init__(self, run_dir: str | Path) -> None:
        """Raises RunFolderError where there is no run."""
        self.reader = open_run(run_dir)
        self.run_dir = self.reader.path

    @property
    def why(self) -> str:
        """Why the run is only read, and how to go on with it."""
        if holder := self.reader.holder:
            return f"{str(holder).capitalize()} has it open: that one goes on with it."
        if not os.access(self.run_dir, os.W_OK):
            return "Its folder cannot be written."
        crashed = "Its process ended without closing it. " if self.state == "crashed" else ""
        return f"{crashed}Go on with it by: python app.py --run {self.run_dir}"

    @property
    def _worker(self) -> Worker:  # type: ignore[override]
        raise SessionError(f"This page only reads the run. {self.why}")

    @property
    def state(self) -> Any:
        """As the folder has it: a State, or "crashed"."""
        return self.reader.state

    @property
    def error(self) -> str:
        """Nothing went wrong here; what did in the run is among its findings."""
        return ""

    @property
    def paused_by(self) -> str:
        """As `error`."""
        return ""

    @property
    def step_number(self) -> int:
        """The last finished step."""
        return self.reader.last_step()

    @property
    def progress(self) -> Progress:
        """The step; the target is known to the process that runs it."""
        return Progress(self.step_number, None, "", None)

    @property
    def version(self) -> int:
        """Grows with each write to the run's database, and when its process ends."""
        times = [int(self.reader.holder is None)]
        for name in (DATABASE, f"{DATABASE}-wal"):
            with suppress(FileNotFoundError):
                times.append((self.run_dir / name).stat().st_mtime_ns)
        return sum(times)

    @property
    def config(self) -> RunConfig:
        """The config in force, live changes applied; what was set aside is not among them."""
        return self.reader.config_at(self.step_number + 1)

    def problems(self, split: Split = "train") -> list[Problem]:
        """None: making a task may need its model's tokenizer."""
        return []

    def close(self) -> None:
        """Nothing is held."""


def only_to_read(run_dir: str | Path) -> bool:
    """Whether another process has the run, or its folder cannot be written."""
    return open_run(run_dir).holder is not None or not os.access(run_dir, os.W_OK)
