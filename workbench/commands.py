"""What the worker is asked, how it answers that it cannot, and where it is."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["idle", "running", "pausing", "paused", "failed", "closed"]
Kind = Literal["look", "flow", "change"]


class SessionError(RuntimeError):
    """A call that the session's present state does not allow; the message says what does."""


class BrokenOff(SessionError):
    """A look or change was stopped half-way; everything is as it was before it."""


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
