"""The thread that owns the model, its command queue and its control points.

Three kinds of command:

- look    (sample, evaluate …): done at the next control point, also inside a step; not recorded
- flow    (run, pause, resume): done at the next control point; recorded
- change  (set, rewind, fork, save …): done between steps; recorded. While a step is paused
  half-way a change abandons it: nothing of it was applied, and it is executed again, the same.

A look or change under way is broken off by Ctrl-C in the call that asked for it, by `pause` and by
`close`: before its next forward pass, with everything as it was before the call.
"""

from __future__ import annotations

import operator
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

import torch
from tqdm.auto import tqdm

from workbench.commands import (
    Abandon,
    Command,
    CommandQueue,
    Kind,
    Progress,
    SessionError,
    State,
    plain,
)
from workbench.config import RunConfig
from workbench.diagnosis import step_not_finite
from workbench.engine import Engine
from workbench.records import CommandRow, Finding, StepRecord
from workbench.store import RunStore, WriteError, open_run
from workbench.training.gradients import NonFiniteError

T = TypeVar("T")


class Worker:
    """Runs an Engine in a thread of its own. All public methods may be called from any thread."""

    def __init__(self, config: RunConfig, store: RunStore) -> None:
        """Load everything in the thread and wait for it; errors of loading are raised here."""
        self.queue = CommandQueue()
        self.state: State = "idle"
        self.version = 0
        self.error = ""
        """Why the run stopped by itself; empty if it did not."""
        self.paused_by = ""
        """What a detector paused the run for; empty if none did."""
        self.last_record: StepRecord | None = None
        self.engine: Engine
        self._running = False  # whether steps are wanted
        self._target: int | None = None
        self._doing = ""
        self._again = (0, 0, 0)  # of steps executed again: the first, the present, the last
        self._phase = ""
        self._untold: deque[Finding] = deque()  # could not be written when they were found
        self._seconds: deque[float] = deque(maxlen=8)
        ready: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._work, args=(config, store, ready), name="workbench", daemon=True
        )
        self._thread.start()
        try:
            self._wait_for(ready)
        except KeyboardInterrupt:
            self.close()
            raise
        ready.result()

    # --- from any thread --------------------------------------------------------------------

    def post(self, name: str, kind: Kind, action: Callable[[], T], /, **arguments: Any) -> T:
        """Have the worker do `action`; see `CommandQueue.post`."""
        return self.queue.post(name, kind, action, plain(arguments))

    def go(self, name: str, steps: int | None) -> None:
        """Run `steps` more steps in the background; None: without end."""
        if steps is not None and operator.index(steps) < 1:
            raise SessionError(f"{name}: steps must be at least 1 (got {steps})")
        self.post(name, "flow", lambda: self._go(name, steps), steps=steps)

    def go_on(self) -> None:
        """After a pause, go on to the target set before."""
        self.post("resume", "flow", self._go_on)

    def pause(self) -> None:
        """Pause at the next control point; returns when it is so. Breaks off what is under way."""
        with self.queue.changed:
            self.queue.break_off("a pause")
            if self.state == "running":
                self.state = "pausing"
                self.version += 1
        self.post("pause", "flow", self._pause)

    def wait_change(self, seconds: float) -> None:
        """Wait until something changed, at most `seconds`."""
        with self.queue.changed:
            self.queue.changed.wait(seconds)

    @property
    def busy(self) -> bool:
        """Whether steps are being made."""
        return self.state in ("running", "pausing")

    @property
    def progress(self) -> Progress:
        """Where the run is."""
        step, target = self.engine.step_number, self._target if self.state != "idle" else None
        eta = None
        if self._seconds and target is not None:
            eta = max(0, target - step) * statistics.median(self._seconds)
        return Progress(step, target, self._phase, eta, self._doing)

    def close(self) -> None:
        """Stop at the next control point, save a snapshot, free the folder."""
        self.queue.close()
        self._thread.join()

    # --- commands, in the worker ------------------------------------------------------------

    def again(self, step: int, last: int, phase: str) -> None:
        """The control point of steps that are executed again; see `engine.Again`."""
        self.queue.check()
        self._again = (self._again[0] or step, step, last)
        if self.queue.current is not None:
            self._doing = f"{self.queue.current.name}: step {step} of {last} again, {phase}"
            self._tell()

    def _go(self, name: str, steps: int | None) -> None:
        if self._running:
            raise SessionError(f"{name}: the run is going already; pause it first")
        self._target = None if steps is None else self.engine.step_number + steps
        self._start()

    def _go_on(self) -> None:
        if self.state != "paused":
            raise SessionError(f"resume: the session is {self.state}, not paused")
        if self._target is not None and self._target <= self.engine.step_number:
            self._target = None
        self._start()

    def _start(self) -> None:
        self._tell_findings()
        self.error = self.paused_by = ""
        self._running = True
        self._say("running")

    def _pause(self) -> None:
        if self._running or self.state == "pausing":
            self._running = False
            self._say("paused")

    # --- the thread -------------------------------------------------------------------------

    def _wait_for(self, ready: Future[None]) -> None:
        """Wait until the thread has everything, with a bar of the steps it executes again."""
        bar: tqdm[Any] | None = None
        waiting = True
        while waiting:
            waiting = not wait([ready], timeout=0.2).done
            first, step, last = self._again
            if step and bar is None:
                said = f"again from the snapshot of step {first - 1}"
                bar = tqdm(total=last - first + 1, unit="step", desc=said, dynamic_ncols=True)
            if bar is not None:
                finished = last if not waiting and ready.exception() is None else step - 1
                bar.update(finished - first + 1 - bar.n)
        if bar is not None:
            bar.close()

    def _work(self, config: RunConfig, store: RunStore, ready: Future[None]) -> None:
        try:
            torch.set_num_threads(_threads(open_run(store.path).meta))
            self.engine = Engine(config, store)
            self.engine.snapshot_ended = self._tell
            self.engine.policy.before_forward(self.queue.check)
            with self.queue.under_way(Command("resume", "change", lambda: None, {}, Future())):
                self.queue.check()
                if store.last_step() or store.snapshot_steps():
                    self.engine.resume(self.again)
                else:
                    self.engine.save()  # step 0: every rewind can start here
            self._doing = ""
            store.set_status("idle", threads=torch.get_num_threads())
        except BaseException as error:
            if store.last_step() or store.snapshot_steps():
                store.close()
            else:
                store.discard()  # e.g. there is no such model: the folder is free again
            self.state = "closed"
            ready.set_exception(error)
            return
        ready.set_result(None)
        try:
            while not self.queue.closing:
                command = self.queue.take(lambda: self._running or store.snapshot_ended)
                if store.snapshot_ended:
                    self._settle()
                if command is not None:
                    self._do(command)
                elif self._running:
                    self._one_step()
        except Exception as error:  # e.g. the database cannot even be read: nobody may wait for us
            self.error = f"the session has ended: {type(error).__name__}: {error}"
            self.queue.close()
        self._shut()

    def _control(self, phase: str) -> None:
        """The control point before each phase of a step."""
        self._phase = phase
        self._tell()
        while command := self.queue.take_in_step(self._running):
            self._do(command)

    def _do(self, command: Command) -> None:
        outcome, result, failure = "done", None, None
        try:
            if command.kind == "flow":
                result = command.action()
            else:
                with self.queue.under_way(command):
                    self.engine.catch_up(self.again)
                    result = command.action()
        except BaseException as error:
            outcome, failure = f"{type(error).__name__}: {error}", error
        self._doing = ""
        try:
            if command.kind != "look":
                self._record(command.name, command.arguments, outcome)
        except Exception as error:  # what is not in the history must not hold
            failure = failure or error
            if command.kind == "flow":
                self._stop("paused", error, {})
            else:
                self.engine.in_step = False
        self._tell()
        if failure is None:
            command.future.set_result(result)
        else:
            command.future.set_exception(failure)

    def _record(self, name: str, arguments: dict[str, Any], outcome: str) -> None:
        row = CommandRow(
            self.engine.step_number,
            self._phase or "rollouts",
            time.time(),
            name,
            arguments,
            outcome,
        )
        self.engine.store.add_command(row)

    def _one_step(self) -> None:
        started = time.monotonic()
        try:
            self.engine.catch_up(self.again)
            record = self.engine.step(self._control)
        except Abandon:
            self._phase = ""
            return
        except NonFiniteError as error:
            self._stop("paused", error, {"phase": error.phase, "tensor": error.tensor})
            return
        except WriteError as error:  # the engine knows whether the step was recorded
            self._stop("paused", error, {"phase": self._phase})
            return
        except Exception as error:  # a fault of the machine or of ours: keep the run, say it
            self.engine.in_step = False
            self._stop("failed", error, {"phase": self._phase, "type": type(error).__name__})
            return
        self._phase = ""
        self.last_record = record
        self._seconds.append(time.monotonic() - started)
        if self.engine.alarms:
            self._pause_for(self.engine.alarms[0])
        elif self._target is not None and record.step >= self._target:
            self._running = False
            if self._settle():
                self._say("idle")
        else:
            self._tell()

    def _settle(self) -> bool:
        """Wait for the snapshot under way. False where it could not be written: the run stops."""
        try:
            self.engine.settle()
        except WriteError as error:
            self._stop("paused", error, {})
            return False
        return True

    def _pause_for(self, finding: Finding) -> None:
        """A detector's policy is to pause: keep the snapshot before the onset, and stand."""
        self._running = False
        if not self._settle():
            return
        try:
            kept = self.engine.keep_before(finding.since)
            self._record("pause", {"by": finding.key, "kept": kept}, "done")
        except WriteError as error:
            self._stop("paused", error, {})
            return
        there = "No snapshot before the onset is left."
        if kept is not None:
            there = f"The snapshot of step {kept} is kept."
        self.paused_by = (
            f"paused after step {finding.step} by {finding.detector}: {finding.message} {there}"
        )
        self._say("paused")

    def _stop(self, state: State, error: Exception, evidence: dict[str, object]) -> None:
        """The run stops by itself: the step in flight was not applied."""
        number = self.engine.step_number + 1
        self.error = f"step {number} was not applied: {error}"
        detector = "fault"
        if isinstance(error, NonFiniteError):
            detector = "non_finite"
        elif isinstance(error, WriteError):
            self.error, detector = str(error), "run_folder"
        self._running = False
        found = Finding(number, "critical", detector, self.error, evidence, "")
        if isinstance(error, NonFiniteError):
            found = step_not_finite(
                number, error.phase, error.tensor, self.error, self.engine.config
            )
        self._untold.append(found)
        try:
            if isinstance(error, NonFiniteError):
                self.engine.keep_before(number)
            self._record("pause", {"by": detector}, self.error)
            self._tell_findings()
        except Exception as second:
            if not isinstance(error, WriteError):
                self.error += f"; and the run folder cannot be written: {second}"
        self._phase = ""
        self._say(state)

    def _tell_findings(self) -> None:
        """Write down what the run stopped by; where the disk is full, before it goes on."""
        while self._untold:
            self.engine.store.add_finding(self._untold[0])
            self._untold.popleft()

    def _say(self, state: State) -> None:
        with self.queue.changed:  # `pause`, in another thread, looks at it and sets it
            self.state = state
        self._tell()
        try:
            self.engine.store.set_status(state)
        except Exception as error:
            self.error = self.error or f"the run folder cannot be written: {error}"

    def _tell(self) -> None:
        with self.queue.changed:
            self.version += 1
            self.queue.changed.notify_all()

    def _shut(self) -> None:
        store = self.engine.store
        try:
            if self.engine.in_step and self.engine.step_number not in store.snapshot_steps():
                store.start_snapshot(self.engine.snapshot())
            self.engine.settle()
            self._tell_findings()
            self._record("close", {}, "done")
        except Exception as error:
            self.error = self.error or str(error)
        try:
            store.close()
        except Exception as error:
            self.error = self.error or str(error)
        with self.queue.changed:
            self.state = "closed"
            self.queue.refuse()
        self._tell()


def _threads(meta: dict[str, Any]) -> int:
    """OMP_NUM_THREADS, else as many as the run had last: the last bit of sums hangs on it."""
    return int(os.environ.get("OMP_NUM_THREADS") or meta.get("threads") or os.cpu_count() or 1)
