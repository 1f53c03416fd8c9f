"""What the Session's worker thread owns: policy, trainer and store, and how they move together.

Everything here runs in one thread. The Session decides when; this decides what.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from workbench.capture import capture, load_optimizers, load_weights
from workbench.config import ConfigError, ModelConfig, RunConfig
from workbench.diagnosis import Judge, RunWatch, signs
from workbench.policy import Policy
from workbench.records import PHASES, CommandRow, Finding, StepRecord
from workbench.store import BudgetError, RunFolderError, RunStore, Snapshot, open_run
from workbench.store.durable import writing
from workbench.tasks import PreparedTask, make_task
from workbench.tasks.problem import Task
from workbench.training.methods import make_method
from workbench.training.trainer import Control, Trainer

FIXED = {"model", *ModelConfig.model_fields}
"""Settings a fork cannot change: the snapshot's tensors have their shape."""


PHASE_SECONDS = {f"seconds/{phase}" for phase in PHASES}
"""Metrics that add up to a step's time; what each probe took is part of them."""

CHANGES = ("set", "set_aside", "take_back")
"""Commands that change the config in force; time travel carries them out again."""

Again = Callable[[int, int, str], None]
"""Called with a step that is executed again, the last such step, and the phase about to begin.

It may raise to break the travel off."""
Different = dict[str, list[float]]
"""Metrics that differ, by name: recorded and now."""
Differs = Callable[[int, Different], None]
"""Called with a step that gave other numbers than it is recorded with."""


def new_policy(config: RunConfig) -> Policy:
    """The starting policy with what its method needs. Raises ConfigError if it cannot be had."""
    method, tracked = make_method(config), config.training.track_baseline
    return Policy(
        config.model,
        config.seed,
        baseline=method.baseline or tracked,
        reference=method.rollouts or tracked,
    )


def trainable_task(config: RunConfig, policy: Policy) -> Task:
    """The task. Raises ConfigError where it cannot be had or has nothing to train on."""
    task = make_task(config.task)
    if not task.problems("train"):
        raise ConfigError("task: there are no training prompts")
    if isinstance(task, PreparedTask):
        task.limit(policy.encode_prompt, policy.encode_completion)
    return task


class Engine:
    """One run in memory."""

    def __init__(self, config: RunConfig, store: RunStore) -> None:
        """Load the model and the task. Raises ConfigError where either cannot be had."""
        self.store = store
        self.config = config
        method = make_method(config)
        self.policy = new_policy(config)
        self.task = trainable_task(config, self.policy)
        self.trainer = Trainer(config, self.policy, self.task)
        if method.demonstrations:
            self._check_aside("set_aside", config.training.set_aside, config)
        self.step_number = 0
        self.in_step = True
        """Whether memory is the end of the folder's last step; a fault may have parted them."""
        self.alarms: list[Finding] = []
        """Findings of the last step whose policy is to pause."""
        self._watch = RunWatch(store)
        self._judge = Judge(self.task)
        self.snapshot_ended: Callable[[], None] = lambda: None
        """Called in another thread when a snapshot that `step` began is written."""
        self._over_budget = False  # whether that was said already
        said = set(open_run(store.path).frame("findings")["message"]) if store.damage else set()
        for line in sorted(set(store.damage) - said):
            self._warn(store.last_step(), "run_folder", line, {}, "", "critical")

    # --- stepping ---------------------------------------------------------------------------

    def make(self, number: int, control: Control) -> StepRecord:
        """Execute step `number` from the present state and apply its update; nothing is stored."""
        record = self.trainer.step(number, control)
        record.metrics.update(signs(record.rollouts, self.config.training.clip_range))
        record.metrics.update(self._judge.signs(record.demonstrations))
        return record

    def step(self, control: Control) -> StepRecord:
        """Run the next step and store its record; begin a snapshot too, where one is due.

        Raises RunFolderError where the folder could not be written; what was recorded stands.
        """
        record = self.make(self.step_number + 1, control)
        started = time.perf_counter()
        self.in_step = False
        self.store.append(record)
        self.step_number, self.in_step = record.step, True
        if record.step % self.config.snapshots.snapshot_every == 0:
            self.store.start_snapshot(self.snapshot(), self.snapshot_ended)
        self.alarms = self._watch.after(record, self.config)
        seconds = {"seconds/record": time.perf_counter() - started}
        seconds["seconds/total"] = seconds["seconds/record"] + sum(
            value for name, value in record.metrics.items() if name in PHASE_SECONDS
        )
        self.store.add_metrics(record.step, seconds)
        record.metrics.update(seconds)
        return record

    def before(self, onset: int) -> int:
        """The last step at whose end the run still was well, for trouble first seen at `onset`.

        A step's numbers describe the policy that it started from: what is first seen at step 12 was
        done by step 11's update at the latest, so this is 10; never before the run's own first.
        """
        return max(onset - 2, self.first_step)

    def keep_before(self, onset: int) -> int | None:
        """Pin the snapshot from which `before` is reached; returns its step; None: none is."""
        well = self.before(onset)
        kept = [step for step in self.store.snapshot_steps() if self.first_step <= step <= well]
        if not kept:
            return None
        self.store.pin(kept[-1])
        return kept[-1]

    def set(self, changes: dict[str, Any]) -> None:
        """Change live settings from the next step on."""
        self.use(self.config.check_live(changes))

    def change_aside(self, name: str, ids: Collection[str]) -> None:
        """Carry out 'set_aside' or 'take_back' of demonstrations, from the next step on.

        Raises ConfigError where an id is unknown, or no demonstration would be left.
        """
        changed = _with_aside(self.config, name, ids)
        self._check_aside(name, ids, changed)
        self.use(changed)

    def _check_aside(self, name: str, ids: Collection[str], changed: RunConfig) -> None:
        if not make_method(changed).demonstrations:
            raise ConfigError(f"{name}: method {changed.method!r} draws no demonstrations")
        known = {d.id for d in self.task.demonstrations()}
        unknown = sorted(set(ids) - known)
        if unknown:
            listed = ", ".join(unknown[:5]) + (", …" if len(unknown) > 5 else "")
            raise ConfigError(f"{name}: no such demonstration: {listed}")
        if known <= set(changed.training.set_aside):
            raise ConfigError(f"{name}: would leave no demonstration; at least one must stay")

    def use(self, config: RunConfig) -> None:
        """Go on under another config of the same shape."""
        self.config = self.trainer.config = config

    # --- snapshots --------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The whole state after `step_number`, as arrays and text."""
        return capture(self.policy, self.trainer, self.step_number, self.config)

    def save(self) -> Path:
        """Write a snapshot of the present state. Raises WriteError, BudgetError."""
        return self.store.save_snapshot(self.snapshot())

    def settle(self) -> None:
        """Wait for the snapshot being written. One that its budget forbids is a finding, once.

        Raises WriteError where it could not be written for another reason.
        """
        self.store.settle()
        for error in self.store.failures():
            if not isinstance(error, BudgetError):
                raise error
            if not self._over_budget:
                self._over_budget = True
                self._warn(self.step_number, "snapshots", str(error), {}, "snapshot_budget_mb")

    def restore(self, snapshot: Snapshot) -> None:
        """Take over a snapshot's weights, optimizers, step and config."""
        load_weights(self.policy, snapshot)
        load_optimizers(self.trainer, snapshot)
        self.step_number = snapshot.step
        self.use(RunConfig.parse(snapshot.state["config"]))

    def policy_at(self, step: int) -> Policy:
        """A copy of the policy with the weights of a snapshot; the run's own stays as it is.

        Raises RunFolderError where there is no snapshot of that step.
        """
        snapshot = self.store.load_snapshot(step)
        policy = self.policy.scratch()
        load_weights(policy, snapshot)
        return policy

    # --- time travel ------------------------------------------------------------------------

    def scratch(self) -> Engine:
        """The same run with weights and optimizers of its own, to `travel` with; see `replay`."""
        other = copy.copy(self)
        other.policy = self.policy.scratch()
        other.trainer = Trainer(self.config, other.policy, self.task, self.trainer.sets)
        return other

    def change(self, config: RunConfig, again: Again) -> None:
        """Turn a scratch into what a fork with this config starts as."""
        here, arrays = self.snapshot(), self.trainer.optimizer_arrays()
        tracks = config.training.track_baseline != self.config.training.track_baseline
        if config.method != self.config.method or tracks:
            self.policy = new_policy(config)
            self.policy.before_forward(lambda: again(self.step_number, self.step_number, ""))
            load_weights(self.policy, here)
        if config.task != self.config.task:
            self.task = trainable_task(config, self.policy)
        self.config = config
        self.trainer = Trainer(config, self.policy, self.task)
        self.trainer.load_optimizer_arrays(arrays)

    def travel(self, to_step: int, again: Again, differs: Differs | None = None) -> int:
        """Bring the state to the end of `to_step`: nearest snapshot, then re-executed up to it.

        Returns the snapshot's step.

        Live settings are changed, and demonstrations set aside, again where the history says so.
        Where a re-executed step's metrics differ from the recorded ones `differs` is called; by
        default a finding says which.
        """
        nearest = self._restore_nearest(to_step)
        # those at `nearest` may be in the snapshot already: done once more they come to the same
        changes = [c for c in self.store.live_commands(*CHANGES) if nearest <= c.step <= to_step]
        for number in range(nearest, to_step + 1):
            for row in changes:
                if row.step == number:
                    self.use(_changed(self.config, row))
            if number < to_step:
                record = self.make(number + 1, partial(again, number + 1, to_step))
                self.step_number = number + 1
                different = different_metrics(self.recorded(record.step).metrics, record.metrics)
                if different:
                    (differs or self._not_reproduced)(record.step, different)
        return nearest

    def _restore_nearest(self, to_step: int) -> int:
        """Take over the newest intact snapshot up to a step and return its step.

        Where none is left a run starts again from its model. Raises RunFolderError in a fork.
        """
        snapshot, damaged = self.store.nearest_snapshot(to_step)
        if snapshot is None or snapshot.step < self.first_step:
            if self.first_step:
                raise RunFolderError(
                    f"{self.store.path}: no intact snapshot of step {self.first_step} or later is "
                    "left, and earlier ones are of the run it was forked from: fork again from that"
                )
            snapshot = self._start()
            self.store.save_snapshot(snapshot)
        self.restore(snapshot)
        for error in damaged:
            message = f"{error}; set aside, went on from step {snapshot.step} instead"
            self._warn(snapshot.step, "run_folder", message, {"to_step": to_step}, "")
        return snapshot.step

    def _start(self) -> Snapshot:
        """The state before step 1, made again from the model the run started from."""
        start = copy.copy(self)
        start.step_number, start.config = 0, self.store.config
        start.policy = new_policy(start.config)
        start.trainer = Trainer(start.config, start.policy, self.task, self.trainer.sets)
        return start.snapshot()

    def resume(self, again: Again) -> None:
        """Bring memory to the end of the folder's last step, and the findings up to date."""
        last = self.store.last_step()
        self.travel(last, again)
        self._watch.open(self.config, last)

    def catch_up(self, again: Again) -> None:
        """Bring memory back to the end of the last recorded step, where a fault parted them."""
        if not self.in_step:
            self.travel(self.store.last_step(), again)
            self.in_step = True

    def recorded(self, step: int) -> StepRecord:
        """What a step of the live history measured. Raises RunFolderError where there is none."""
        return open_run(self.store.path).record(step)

    def _not_reproduced(self, step: int, different: Different) -> None:
        message = (
            f"step {step} was executed again and gave other numbers "
            f"({', '.join(list(different)[:3])}): this run is not reproducible here, "
            "perhaps by another device, thread count or library version"
        )
        self._warn(step, "reexecution", message, {"recorded_and_now": different}, "")

    def _warn(
        self,
        step: int,
        detector: str,
        message: str,
        evidence: dict[str, Any],
        setting: str,
        severity: Literal["note", "warning", "critical"] = "warning",
    ) -> None:
        self.store.add_finding(Finding(step, severity, detector, message, evidence, setting))

    def rewind(self, to_step: int, again: Again) -> None:
        """Go back to the end of `to_step`; later rows stay in the folder, superseded."""
        self._check_reachable(to_step)
        here = self.snapshot()
        try:
            self.travel(to_step, again)
            self.store.rewind(to_step)
        except BaseException:
            self.restore(here)
            raise

    def fork(self, path: Path, at_step: int, changes: dict[str, Any], again: Again) -> None:
        """Make a new run folder that starts at the end of `at_step` with settings changed.

        The present state is put back before this returns. Raises ConfigError, RunFolderError.
        """
        self._check_reachable(at_step)
        self.check_changes(changes)  # what is bad is said before any work
        here = self.snapshot()
        try:
            if at_step != self.step_number:
                self.travel(at_step, again)
            config = self.changed_config(changes)
            start = self.snapshot()
            start.state["config"] = config.model_dump(mode="json")
            self.store.fork(path, at_step, config, start).close()
        finally:
            self.restore(here)

    def check_changes(self, changes: dict[str, Any]) -> None:
        """Raises ConfigError where a fork or replay cannot change settings like that."""
        for name in FIXED & changes.keys():
            raise ConfigError(f"{name}: a fork keeps the model's shape; start a new run instead")
        wanted = self.config.with_changes(**changes)
        if "set_aside" in changes and wanted.task == self.config.task:
            self._check_aside("set_aside", wanted.training.set_aside, wanted)

    def changed_config(self, changes: dict[str, Any]) -> RunConfig:
        """The config in force with any settings changed, as a fork starts with it."""
        config = self.config.with_changes(**changes)
        if config.task != self.config.task and "set_aside" not in changes:
            config = config.with_changes(set_aside=[])  # equal ids are other ones there
        return config

    def _check_reachable(self, step: int) -> None:
        first = self.first_step
        if not first <= step <= self.step_number:
            where = f"{first} to {self.step_number}"
            reason = f" (this run was forked at {first})" if first else ""
            raise RunFolderError(f"step {step}: there are steps {where}{reason}")

    @property
    def first_step(self) -> int:
        """Where this run's own history begins: the step it was forked at, or 0."""
        return int(open_run(self.store.path).meta.get("forked_from", {}).get("step", 0))

    def export(self, path: Path) -> None:
        """Write the joint policy as one plain model that needs neither peft nor this project.

        Raises WriteError.
        """
        with writing(f"the model at {path}"):
            self.policy.merged().save_pretrained(path)
            self.policy.tokenizer.save_pretrained(path)


def different_metrics(recorded: dict[str, float], now: dict[str, float]) -> Different:
    """The metrics both have that are not equal to the last bit; what tells the time is left out."""
    return {
        name: [recorded[name], value]
        for name, value in now.items()
        if not name.startswith("seconds/")
        and name in recorded
        and not np.array_equal(recorded[name], value, equal_nan=True)
    }


def _with_aside(config: RunConfig, name: str, ids: Collection[str]) -> RunConfig:
    before = set(config.training.set_aside)
    after = before | set(ids) if name == "set_aside" else before - set(ids)
    return config.with_changes(set_aside=sorted(after))


def _changed(config: RunConfig, row: CommandRow) -> RunConfig:
    """The config after one of the CHANGES, as it was recorded."""
    if row.name == "set":
        return config.check_live(row.arguments)
    ids = row.arguments["ids"]
    assert isinstance(ids, list)
    return _with_aside(config, row.name, ids)
