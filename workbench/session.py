"""Session: a run you can start, pause, look into, rewind and fork.

One worker thread owns the model; every call posts a command to it and waits (worker.py says when
each kind takes effect). Looking never changes the run: all randomness is a function of (seed, step,
purpose), so the step after a look, a pause or a rewind is bit-identical.
"""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

import pandas as pd
from tqdm.auto import tqdm

from workbench.config import KNOBS, Knob, RunConfig
from workbench.policy import PolicyName
from workbench.probes.coordinator import draw_samples, effect
from workbench.probes.evaluation import greedy_accuracy
from workbench.probes.gain import draw_paired
from workbench.records import CoordinatorEffect, GainRow, Sample, StepRecord
from workbench.sampling import Noise
from workbench.store import Run, RunStore, open_run
from workbench.tasks.problem import Problem, Split
from workbench.training.measure import probe_set
from workbench.worker import Progress, SessionError, State, Worker


class _Resume:
    """`Session.resume(folder)` opens a run; `s.resume()` goes on after a pause."""

    def __get__(self, session: Session | None, owner: type[Session]) -> Callable[..., Any]:
        return owner.open if session is None else session.go_on


class Session:
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
        self._worker.go("step", 1)
        try:
            self.wait()
        except KeyboardInterrupt:
            self.pause()
            raise
        self._raise_own_stop()
        record = self._worker.last_record
        assert record is not None
        return record

    def run(self, steps: int | None = None) -> None:
        """Run `steps` steps (None: until paused) and wait, with a progress bar.

        Ctrl-C pauses at the next control point and returns. Raises SessionError where a step was
        not applied.
        """
        self._worker.go("run", steps)
        start = self.step_number
        with tqdm(total=steps, unit="step", desc=self.config.method, dynamic_ncols=True) as bar:
            try:
                while self._worker.busy:
                    self._worker.wait_change(0.2)
                    if self.step_number - start > bar.n:
                        self._draw(bar, start)
            except KeyboardInterrupt:
                self.pause()
            self._draw(bar, start)
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
        self._worker.post("set", "change", lambda: self._worker.engine.set(changes), **changes)

    def rewind(self, step: int) -> None:
        """Go back to the end of `step` (0: the start). Later rows stay in the folder, marked.

        The nearest snapshot is loaded and executed again up to there. Raises RunFolderError where
        there is no such step; SessionError while the run is going.
        """
        self._worker.post("rewind", "change", lambda: self._rewind(step), step=step)

    def _rewind(self, step: int) -> None:
        self._must_stand("rewind")
        self._worker.engine.rewind(step, lambda phase: None)

    def fork(self, run_dir: str | Path, step: int | None = None, **changes: Any) -> Session:
        """A new run in `run_dir` that starts at the end of `step` (default: the last) with changes.

        Any setting but the model's may change. Raises ConfigError, RunFolderError; SessionError
        while the run is going.
        """
        path = Path(run_dir)

        def work() -> None:
            self._must_stand("fork")
            at = self.step_number if step is None else step
            self._worker.engine.fork(path, at, changes)

        self._worker.post("fork", "change", work, run_dir=str(run_dir), step=step, **changes)
        return Session.open(path)

    def _must_stand(self, name: str) -> None:
        if self._worker.busy:
            raise SessionError(f"{name}: the run is going; pause it first")

    def save(self) -> Path:
        """Write a snapshot now; returns its folder."""
        return self._worker.post("save", "change", self._worker.engine.save)

    def export(self, path: str | Path) -> None:
        """Write the joint policy as one plain transformers model, coordinator merged in."""
        self._worker.post(
            "export", "change", lambda: self._worker.engine.export(Path(path)), path=str(path)
        )

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

    def record(self, step: int) -> StepRecord:
        """All that a finished step measured."""
        return self.reader.record(step)

    def problems(self, split: Split = "train") -> list[Problem]:
        """The problems of a split."""
        return list(self._worker.engine.task.problems(split))

    def sample(
        self,
        prompts: Sequence[str],
        coordinator: float = 1.0,
        policy: PolicyName = "joint",
        rollouts: int = 1,
        greedy: bool = False,
        seed: int = 0,
        max_new_tokens: int | None = None,
    ) -> list[Sample]:
        """Complete each prompt `rollouts` times. Changes nothing in the run.

        coordinator: scale of w, 0 off, 1 as trained. Equal seeds give equal noise, whatever the
        scale or policy. Rewards are NaN unless the prompt is one of the task's.
        """
        engine = self._worker.engine

        def look() -> list[Sample]:
            self._check_policy(policy)
            return draw_samples(
                engine.policy,
                list(prompts),
                coordinator=coordinator,
                policy_name=policy,
                rollouts=rollouts,
                greedy=greedy,
                seed=seed,
                max_new_tokens=max_new_tokens or engine.config.sampling.max_new_tokens,
                temperature=engine.config.sampling.temperature,
                reward=self._reward,
            )

        return self._worker.post("sample", "look", look)

    def coordinator_effect(
        self,
        prompt: str,
        scales: Sequence[float] = (1.0,),
        answer: str | None = None,
        rollouts: int = 1,
        greedy: bool = False,
        seed: int = 0,
        against: float = 0.0,
    ) -> list[CoordinatorEffect]:
        """The same prompt and noise with the coordinator at `against` and at each of `scales`.

        One entry for each scale and rollout. Changes nothing in the run.
        """
        engine = self._worker.engine

        def reward(prompt: str, completion: str) -> float:
            if answer is None:
                return self._reward(prompt, completion)
            return engine.task.reward(completion, Problem("typed", prompt, answer))

        def look() -> list[CoordinatorEffect]:
            return effect(
                engine.policy,
                prompt,
                scales=list(scales),
                against=against,
                rollouts=rollouts,
                greedy=greedy,
                seed=seed,
                max_new_tokens=engine.config.sampling.max_new_tokens,
                temperature=engine.config.sampling.temperature,
                reward=reward,
            )

        return self._worker.post("coordinator_effect", "look", look)

    def paired_gain(
        self, prompt_ids: Sequence[str] | None = None, rollouts: int | None = None
    ) -> list[GainRow]:
        """Cooperative gain now, from paired rollouts; by default on the probe set.

        Raises SessionError where the method keeps no RL-only baseline.
        """
        engine = self._worker.engine

        def look() -> list[GainRow]:
            self._check_policy("baseline")
            config = engine.config
            problems = probe_set(engine.task, config)
            if prompt_ids is not None:
                known = {p.id: p for p in self._all_problems()}
                problems = [known[name] for name in prompt_ids]
            rows, _ = draw_paired(
                engine.policy,
                problems,
                engine.task,
                Noise(config.seed, engine.step_number, "paired on demand"),
                rollouts or config.probes.paired_rollouts,
                config.sampling.max_new_tokens,
                config.sampling.temperature,
            )
            return rows

        return self._worker.post("paired_gain", "look", look)

    def evaluate(
        self, split: Split = "validation", policy: PolicyName = "joint", n: int | None = None
    ) -> float:
        """Greedy accuracy on the first `n` problems of a split (default: all)."""
        engine = self._worker.engine

        def look() -> float:
            self._check_policy(policy)
            problems = self.problems(split)[:n]
            if not problems:
                raise SessionError(f"evaluate: the task has no problems in split {split!r}")
            return greedy_accuracy(engine.policy, policy, engine.task, problems, engine.config)

        return self._worker.post("evaluate", "look", look)

    def _check_policy(self, name: PolicyName) -> None:
        try:
            self._worker.engine.policy.of(name)
        except (KeyError, ValueError):
            raise SessionError(
                f"policy: method {self.config.method!r} keeps no {name!r} policy"
            ) from None

    def _reward(self, prompt: str, completion: str) -> float:
        for problem in self._all_problems():
            if problem.prompt == prompt:
                return self._worker.engine.task.reward(completion, problem)
        return float("nan")

    def _all_problems(self) -> Iterator[Problem]:
        for split in get_args(Split):
            yield from self._worker.engine.task.problems(split)

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
        return lines + ([numbers] if numbers else []) + ([self.error] if self.error else [])

    def __repr__(self) -> str:
        return "<Session " + "\n  ".join(self._summary()) + ">"

    def _repr_html_(self) -> str:
        first, *rest = (html.escape(line) for line in self._summary())
        return f"<b>{first}</b><br>" + "<br>".join(rest)
