"""What the worker is asked, how it waits and is broken off, and where the worker is."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel

from workbench.config import ConfigError

T = TypeVar("T")

State = Literal["idle", "running", "pausing", "paused", "failed", "closed"]
Kind = Literal["look", "flow", "change"]


class SessionError(RuntimeError):
    """A call that the session's present state does not allow; the message says what does."""


class BrokenOff(SessionError):
    """A look or change was stopped half-way; everything is as it was before it."""


class Abandon(Exception):
    """Leaves a step of which nothing was applied."""


def plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as a command's record keeps them: NumPy's numbers as numbers, sections as tables.

    Raises ConfigError for what is neither.
    """

    def made_plain(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, BaseModel):
            return value.model_dump(mode="json")
        raise ConfigError(f"a setting is a number, text, list or table (got {value!r})")

    found: dict[str, Any] = json.loads(json.dumps(arguments, default=made_plain))
    return found


@dataclass(eq=False)
class Command:
    """One call, waiting or under way."""

    name: str
    kind: Kind
    action: Callable[[], Any]
    arguments: dict[str, Any]
    future: Future[Any]
    broken_by: str = ""
    """Who wants it to stop; empty: nobody."""


@dataclass(frozen=True)
class Progress:
    """Where a session is."""

    step: int
    """Last finished step."""
    target: int | None
    """Step at which it will stop; None: without end, or nothing was asked for."""
    phase: str
    """Phase under way; empty between steps."""
    eta_seconds: float | None
    """Time left to the target, by the median of the last steps; None where unknown."""
    doing: str = ""
    """How far a rewind, fork, replay or resume is that executes steps again; else empty."""


class CommandQueue:
    """Commands that wait for the worker, and the look or change that it has under way."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        """Guards all of this; told of every change, also of the worker's state."""
        self.closing = False
        self.current: Command | None = None
        """The look or change under way."""
        self._waiting: deque[Command] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    # --- from any thread --------------------------------------------------------------------

    def post(self, name: str, kind: Kind, action: Callable[[], T], arguments: dict[str, Any]) -> T:
        """Have the worker do `action`, wait, and return its result or raise its error.

        Ctrl-C takes it back, or breaks it off, and is raised once the worker has let go of it.
        """
        future: Future[T] = Future()
        command = Command(name, kind, action, arguments, future)
        posted = False
        try:
            with self.changed:
                if self.closing:
                    raise SessionError(
                        f"{name}: the session is closed; Session.resume opens it again"
                    )
                self._waiting.insert(self._place(command), command)
                posted = True
                self.changed.notify_all()
            while not wait([future], 0.2).done:  # Windows notices Ctrl-C between two waits only
                pass
            return future.result()
        except KeyboardInterrupt:
            with self.changed:
                command.broken_by = "Ctrl-C"
                if command in self._waiting:
                    self._waiting.remove(command)
                    posted = False
            if posted:
                wait([future])
            raise

    def _place(self, command: Command) -> int:
        """Where among those that wait: a pause waits for no look or change."""
        if command.name != "pause":
            return len(self._waiting)
        return max((at + 1 for at, c in enumerate(self._waiting) if c.kind == "flow"), default=0)

    def break_off(self, by: str) -> None:
        """Stop the look or change under way, before its next forward pass."""
        with self.changed:
            if self.current is not None:
                self.current.broken_by = by

    def close(self) -> None:
        """Take no more commands, break off the one under way, and wake the worker."""
        with self.changed:
            self.closing = True
            self.break_off("closing the session")
            self.changed.notify_all()

    # --- in the worker ----------------------------------------------------------------------

    @contextmanager
    def under_way(self, command: Command) -> Iterator[None]:
        """A look or change that `check` may break off."""
        with self.changed:
            self.current = command
            if self.closing:
                command.broken_by = "closing the session"
        try:
            yield
        finally:
            self.current = None

    def check(self) -> None:
        """Raises BrokenOff where the look or change under way has to stop."""
        command = self.current
        if command is not None and command.broken_by:
            raise BrokenOff(f"{command.name}: broken off by {command.broken_by}; nothing changed")

    def take(self, awake: Callable[[], bool]) -> Command | None:
        """The next command, between steps; None where there is something else to do.

        Waits until there is a command, `awake` says so, or the session is to close.
        """
        with self.changed:
            while not (self._waiting or self.closing or awake()):
                self.changed.wait()
            return self._waiting.popleft() if self._waiting and not self.closing else None

    def take_in_step(self, running: bool) -> Command | None:
        """The next look or flow command, inside a step; None where the step may go on.

        Waits while nothing runs. Raises Abandon where a change waits for a step that stands still,
        or the session is to close.
        """
        with self.changed:
            while True:
                command = next((c for c in self._waiting if c.kind != "change"), None)
                if self.closing or (command is None and self._waiting and not running):
                    raise Abandon
                if command is not None:
                    self._waiting.remove(command)
                    return command
                if running:
                    return None
                self.changed.wait()

    def refuse(self) -> None:
        """Tell those that still wait that the session was closed."""
        for command in self._waiting:
            command.future.set_exception(SessionError(f"{command.name}: the session was closed"))
