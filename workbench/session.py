"""Session: a run you can start, pause, look into, rewind and fork.

One worker thread owns the model; every call posts a command to it and waits (worker.py says when
each kind takes effect). Looking never changes the run: all randomness is a function of (seed, step,
purpose), so the step after a look, a pause or a rewind is bit-identical.
"""

from __future__ import annotations

import html
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from workbench.commands import plain
from workbench.config import KNOBS, Knob, RunConfig
from workbench.evaluation import Evaluation
from workbench.evaluation.keeping import evaluate_now
from workbench.inspecting import Inspecting
from workbench.looking import Looking
from workbench.probes.ledger import ledger, suspects
from workbench.records import AnswerRow, StepRecord
from workbench.store import Run, RunStore, open_run
from workbench.travelling import AnyFinding, Travelling, settings_of
from workbench.worker import Progress, SessionError, State, Worker


class _Resume:
    """`Session.resume(folder)` opens a run; `s.resume()` goes on after a pause."""

    def __get__(self, session: Session | None, owner: type[Session]) -> Callable[..., Any]:
        return owner.open if session is None else session.go_on


class Session(Looking, Inspecting, Travelling):
    """A run in progress."""

    resume = _Resume()

    def __init__(self, config: RunConfig, run_dir: str | Path | None = None) -> None:
        """Start a new run in `run_dir` (default: runs/<method>-<date>-<time>).

        Raises RunFolderError where the folder holds a run already, ConfigError where the model or
        the data cannot be had.
        """
        path = Path(run_dir or time.strftime(f"runs/{config.method}-%Y%m%d-%H%M%S"))
        self._attach(RunStore.create(path, config))

    @classmethod
    def open(cls, run_dir: str | Path) -> Session:
        """Go on with the run of a folder, however it stopped; also as `Session.resume(run_dir)`.

        At most the step that was in flight is lost. Raises RunFolderError, ConfigError.
        """
        session = cls.__new__(cls)
        session._attach(RunStore.open(Path(run_dir)))
        return session

    def _attach(self, store: RunStore) -> None:
        self.run_dir = store.path
        self._worker = Worker(store.config, store)
        self.reader: Run = open_run(store.path)

    # --- where it is ------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """idle | running | pausing | paused | failed | closed."""
        return self._worker.state

    @property
    def error(self) -> str:
        """Why the run stopped by itself; empty if it did not."""
        return self._worker.error

    @property
    def paused_by(self) -> str:
        """What a detector paused the run for, in a sentence; empty if none did."""
        return self._worker.paused_by

    @property
    def step_number(self) -> int:
        """The last finished step; 0 before the first."""
        return self._worker.engine.step_number

    @property
    def progress(self) -> Progress:
        """Step, target, phase and time left."""
        return self._worker.progress

    @property
    def version(self) -> int:
        """A number that grows whenever something a view shows may have changed."""
        return self._worker.version

    @property
    def config(self) -> RunConfig:
        """The config in force, live changes applied."""
        return self._worker.engine.config

    @property
    def knobs(self) -> list[Knob]:
        """The settings `set` can change, with their ranges."""
        return list(KNOBS)

    # --- running ----------------------------------------------------------------------------

    def step(self) -> StepRecord:
        """Run one step (or finish the one paused half-way) and return its record.

        Raises SessionError where the run is going already, or where the step was not applied.
        """
        wanted = self.step_number + 1
        try:
            self._worker.go("step", 1)
            self.wait()
        except KeyboardInterrupt:
            self.pause()
            raise
        self._raise_own_stop()
        record = self._worker.last_record
        if self.step_number < wanted or record is None:
            raise SessionError(f"step: {self.state} before step {wanted} was finished")
        return record

    def run(self, steps: int | None = None) -> None:
        """Run `steps` steps (None: until paused) and wait, with a progress bar.

        Ctrl-C pauses at the next control point and returns. Raises SessionError where a step was
        not applied.
        """
        start = self.step_number
        try:
            self._worker.go("run", steps)
            with tqdm(total=steps, unit="step", desc=self.config.method, dynamic_ncols=True) as bar:
                try:
                    while self._worker.busy:
                        self._worker.wait_change(0.2)
                        if self.step_number - start > bar.n:
                            self._draw(bar, start)
                finally:
                    self._draw(bar, start)
        except KeyboardInterrupt:
            self.pause()
        self._raise_own_stop()

    def _draw(self, bar: tqdm[Any], start: int) -> None:
        shown = {"reward": "reward", "loss/sft": "sft_loss", "eval/accuracy": "accuracy"}
        metrics = self._worker.last_record.metrics if self._worker.last_record else {}
        bar.set_postfix(
            {label: f"{metrics[name]:.3f}" for name, label in shown.items() if name in metrics},
            refresh=False,
        )
        bar.update(self.step_number - start - bar.n)

    def start(self, steps: int | None = None) -> None:
        """Run in the background: `steps` steps, or until paused."""
        self._worker.go("start", steps)

    def pause(self) -> None:
        """Pause at the next control point, at most one phase away; returns when it is so."""
        self._worker.pause()

    def go_on(self) -> None:
        """Go on after a pause, to the end set before; also as `s.resume()`."""
        self._worker.go_on()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing runs; False where `timeout` seconds passed first."""
        end = time.monotonic() + (float("inf") if timeout is None else timeout)
        while self._worker.busy:
            if time.monotonic() >= end:
                return False
            self._worker.wait_change(0.1)
        return True

    def _raise_own_stop(self) -> None:
        if self.error:
            raise SessionError(self.error)

    # --- changing ---------------------------------------------------------------------------

    def set(self, **changes: Any) -> None:
        """Change live settings from the next step on: s.set(rl_weight=0.7).

        Raises ConfigError where a setting is unknown, out of range or not live.
        """
        settings = plain(changes)
        self._worker.post("set", "change", lambda: self._worker.engine.set(settings), **settings)

    def set_aside(self, ids: str | Iterable[str]) -> None:
        """Draw these demonstrations no more, from the next step on; the others keep their places.

        Like `set` it is part of the run's history: resume, rewind and fork keep to it. Raises
        ConfigError where an id is unknown or no demonstration would be left.
        """
        self._change_aside("set_aside", ids)

    def take_back(self, ids: str | Iterable[str]) -> None:
        """Draw demonstrations that were set aside again, from the next step on.

        Raises ConfigError where an id is unknown.
        """
        self._change_aside("take_back", ids)

    def _change_aside(self, name: str, ids: str | Iterable[str]) -> None:
        listed = [ids] if isinstance(ids, str) else [str(i) for i in ids]
        self._worker.post(
            name, "change", lambda: self._worker.engine.change_aside(name, listed), ids=listed
        )

    def rewind(self, step: int) -> None:
        """Go back to the end of `step` (0: the start). Later rows stay in the folder, marked.

        The nearest snapshot is loaded and executed again up to there; Ctrl-C or a pause breaks it
        off and leaves all as it was. Raises RunFolderError where there is no such step;
        SessionError while the run is going.
        """
        number = int(step)  # a frame's numbers are NumPy's
        self._worker.post("rewind", "change", lambda: self._rewind(number), step=number)

    def _rewind(self, step: int) -> None:
        self._must_stand("rewind")
        self._worker.engine.rewind(step, self._worker.again)
        self._worker.last_record = None  # superseded

    def fork(self, run_dir: str | Path, step: int | None = None, **changes: Any) -> Session:
        """A new run in `run_dir` that starts at the end of `step` (default: the last) with changes.

        Any setting but the model's may change. Raises ConfigError, RunFolderError; SessionError
        while the run is going.
        """
        path, settings = Path(run_dir), plain(changes)
        step = None if step is None else int(step)  # a frame's numbers are NumPy's

        def work() -> None:
            self._must_stand("fork")
            at = self.step_number if step is None else step
            self._worker.engine.fork(path, at, settings, self._worker.again)

        self._worker.post("fork", "change", work, run_dir=str(run_dir), step=step, **settings)
        return Session.open(path)

    def fork_with(
        self, finding: AnyFinding, run_dir: str | Path | None = None, **changes: Any
    ) -> Session:
        """A fork from the step before a finding's onset, with the settings it suggests.

        changes: settings instead of, or beside, the suggested ones. run_dir: default beside this
        run. Raises as `fork`, and SessionError where the finding suggests no value.
        """
        found = self.finding(finding)
        settings, step = settings_of(found, changes), self.before(found).step
        name = f"{self.run_dir.name}-{found.detector}-from-{step}-{time.strftime('%H%M%S')}"
        return self.fork(run_dir or self.run_dir.with_name(name), step=step, **settings)

    def _must_stand(self, name: str) -> None:
        if self._worker.busy:
            raise SessionError(f"{name}: the run is going; pause it first")

    def save(self) -> Path:
        """Write a snapshot now; returns its folder. Raises RunFolderError: disk full, no budget."""
        return self._worker.post("save", "change", self._worker.engine.save)

    def pin(self, step: int) -> None:
        """Keep the snapshot of a step, whatever `keep_last` and `snapshot_budget_mb` say.

        Until `unpin`, or until a rewind goes back before it. Raises RunFolderError where there is
        no snapshot of that step; `s.reader.snapshots()` lists them.
        """
        pin, number = self._worker.engine.store.pin, int(step)  # a frame's numbers are NumPy's
        self._worker.post("pin", "change", lambda: pin(number), step=number)

    def unpin(self, step: int) -> None:
        """Let the snapshot of a step go when its time comes. Raises RunFolderError: not pinned."""
        unpin, number = self._worker.engine.store.unpin, int(step)
        self._worker.post("unpin", "change", lambda: unpin(number), step=number)

    def export(self, path: str | Path) -> None:
        """Write the joint policy as one plain transformers model, coordinator merged in.

        Raises RunFolderError where it cannot be written.
        """
        self._worker.post(
            "export", "change", lambda: self._worker.engine.export(Path(path)), path=str(path)
        )

    def evaluate_all(
        self,
        sets: Sequence[str] = ("validation",),
        samples: int = 0,
        limit: int | None = None,
        progress: bool = True,
    ) -> Evaluation:
        """Every policy the run holds, side by side on the same problems, with paired tests.

        The command `eval` does the same from the run folder: joint, off, baseline, base. sets: the
        splits validation and hard, or what `eval --sets` takes; limit: the first problems of each;
        samples: completions a problem beside the greedy one. Kept under evaluations/; changes
        nothing in the run. Raises ConfigError, RunFolderError.
        """
        engine = self._worker.engine

        def look() -> Evaluation:
            return evaluate_now(engine, sets, samples, limit, progress)

        return self._worker.post("evaluate_all", "look", look)

    def close(self) -> None:
        """Stop at the next control point, write a snapshot and free the folder."""
        self._worker.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- looking ----------------------------------------------------------------------------

    def frame(self, name: str, history: bool = False) -> pd.DataFrame:
        """A table of the run, by name; `history=True` keeps rows that a rewind superseded.

        Names: metrics, rollouts, gain, demonstrations, alignment, coordinator, commands, findings.
        """
        return self.reader.frame(name, history)

    def overview(self, name: str) -> pd.DataFrame:
        """A table to draw from again and again, of bounded size; see `Run.overview`."""
        return self.reader.overview(name)

    def record(self, step: int) -> StepRecord:
        """All that a finished step measured."""
        return self.reader.record(step)

    def ledger(self, answers: Sequence[AnswerRow] = ()) -> pd.DataFrame:
        """What each demonstration has done so far, the most suspect first; probes/ledger.py.

        answers: from `check_answers`; then those come first that the policy's rollouts contradict.
        """
        return ledger(self.frame("demonstrations"), answers)

    def export_suspects(
        self,
        path: str | Path,
        n: int | None = None,
        threshold: float | None = None,
        answers: Sequence[AnswerRow] = (),
    ) -> int:
        """Write the most suspect demonstrations as JSON lines; returns how many.

        n: at most so many; threshold: those whose score is at least this; answers: as in `ledger`.
        A line holds id, prompt, solution, score, disagreement (null: not asked for), visits and
        rank. Raises SessionError where neither limit is given or the file cannot be written.
        """
        if n is None and threshold is None:
            raise SessionError("export_suspects: say how many (n) or from which score (threshold)")
        found = suspects(self.ledger(answers), n, threshold)
        found = found.rename(columns={"demonstration_id": "id"})
        columns = ["id", "prompt", "solution", "score", "disagreement", "visits", "rank"]
        rows = found[columns].astype(object).where(found[columns].notna(), None).to_dict("records")
        try:
            with Path(path).open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        except OSError as error:
            raise SessionError(f"export_suspects: cannot write {path}: {error.strerror}") from None
        return len(rows)

    # --- shown ------------------------------------------------------------------------------

    def _summary(self) -> list[str]:
        metrics = self._worker.last_record.metrics if self._worker.last_record else {}
        shown = ("reward", "eval/accuracy", "gain/shared", "alignment/cosine", "coordinator/ratio")
        numbers = ", ".join(f"{name} {metrics[name]:.3g}" for name in shown if name in metrics)
        c = self.config
        lines = [
            f"{c.method} on {c.model.path}, step {self.step_number}, {self.state}",
            f"folder {self.run_dir}",
        ]
        lines += [numbers] if numbers else []
        return lines + [line for line in (self.error, self.paused_by) if line]

    def __repr__(self) -> str:
        return "<Session " + "\n  ".join(self._summary()) + ">"

    def _repr_html_(self) -> str:
        first, *rest = (html.escape(line) for line in self._summary())
        return f"<b>{first}</b><br>" + "<br>".join(rest)
