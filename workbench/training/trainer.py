"""One meta-training step, phase by phase. Knows no Session, no store, no UI.

A step is a function of (weights, optimizer states, config, seed, step number): nothing else enters.
All gradients and probes are taken at the old weights; the update comes last and at once.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from workbench.config import RunConfig, due
from workbench.placement import time_when_done
from workbench.policy import Policy
from workbench.records import StepRecord
from workbench.tasks.problem import Demonstration, Task
from workbench.tasks.sets import ScheduledSet, scheduled_sets
from workbench.training.batches import (
    DemonstrationBatch,
    RolloutBatch,
    as_problem,
    draw,
    pack_demonstrations,
)
from workbench.training.faults import (
    faulty_demonstrations,
    faulty_directions,
    faulty_rewards,
)
from workbench.training.gradients import (
    Keep,
    NonFiniteError,
    PerDemonstration,
    RLPass,
    SFTPass,
    rl_pass,
    sft_pass,
)
from workbench.training.measure import Measured, measure
from workbench.training.methods import (
    Directions,
    Gradients,
    Plan,
    Sides,
    judged,
    make_method,
)
from workbench.training.moments import chunks, load_moments, moments, put_back
from workbench.training.passes import Passes
from workbench.training.rollout_products import rollout_products
from workbench.training.scene import Scene
from workbench.training.schedules import rl_weight
from workbench.training.vectors import ParamVector

Control = Callable[[str], None]
"""Called with a phase's name just before it begins; may block, or raise to abandon the step."""


STATE = "method/state"
"""Name of the method's memory among the optimizers' arrays."""

Watch = Callable[[str], AbstractContextManager[object]]
"""Entered around each backward pass, with its name: "rl", "baseline_rl", "sft", …"""


class Clock:
    """Times the phases of a step and passes each beginning on to the control point."""

    def __init__(self, control: Control, device: torch.device) -> None:
        self.control, self.device = control, device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """One named phase; waiting at its control point is not counted."""
        self.control(name)
        started = time_when_done(self.device)
        yield
        self.seconds[name] = time_when_done(self.device) - started


class Trainer:
    """The optimizers of θ, θ̂ and w, and the phases of a step."""

    def __init__(
        self,
        config: RunConfig,
        policy: Policy,
        task: Task,
        sets: tuple[ScheduledSet, ...] | None = None,
    ) -> None:
        """sets: those of `evaluation_sets`, where they were read before; None: read them.

        Raises ConfigError where one cannot be had.
        """
        self.config, self.policy, self.task = config, policy, task
        self.sets = scheduled_sets(config, task) if sets is None else sets
        self.watch: Watch = lambda name: nullcontext()
        self.method = make_method(config)
        self.state: dict[str, Any] = {}  # what the method remembers; part of `optimizer_arrays`
        self.tracks_baseline = config.training.track_baseline and not self.method.baseline
        self.problems = task.problems("train")
        self.demonstrations = task.demonstrations() if self.method.demonstrations else []
        self.trained_coordinator = policy.coordinator if self.method.coordinator else {}
        self.optimizers: dict[str, torch.optim.AdamW] = {"base": self._adamw(policy.base)}
        if self.method.baseline or self.tracks_baseline:
            self.optimizers["baseline"] = self._adamw(policy.baseline_base)
        if self.method.coordinator:
            self.optimizers["coordinator"] = self._adamw(policy.coordinator)
        if self.method.own_sft:
            self.optimizers["own_sft"] = self._adamw(policy.base)

    def _adamw(self, parameters: dict[str, Parameter]) -> torch.optim.AdamW:
        # lr is set before every step, from the config in force; one tensor after the other, for
        # all at once want as much memory again as there are weights
        return torch.optim.AdamW(parameters.values(), lr=0.0, weight_decay=0.0, foreach=False)

    def parameters(self, part: str) -> dict[str, Parameter]:
        """The parameters an optimizer moves, by name. 'own_sft' is a second one of θ."""
        return {
            "base": self.policy.base,
            "own_sft": self.policy.base,
            "baseline": self.policy.baseline_base,
            "coordinator": self.policy.coordinator,
        }[part]

    def step(self, number: int, control: Control = lambda phase: None) -> StepRecord:
        """Run step `number` (from 1) and apply its update.

        Raises NonFiniteError before anything is applied, and whatever `control` raises.
        """
        resets = self.method.baseline and self.config.training.baseline_mode == "reset"
        with self._put_back("baseline") if resets else nullcontext():  # what moves early
            return self._step(number, control)

    @contextmanager
    def _put_back(self, *parts: str) -> Iterator[None]:
        self.policy.wait()
        with put_back([(self.parameters(part), self.optimizers[part]) for part in parts]):
            try:
                yield
            finally:
                self.policy.wait()  # where the optimizers' states are

    def _step(self, number: int, control: Control) -> StepRecord:
        c, method, clock = self.config, self.method, Clock(control, self.policy.device)
        plan = method.plan(number, c)
        batch: RolloutBatch | None = None
        rl: RLPass | None = None
        baseline_rl: RLPass | None = None
        with clock.phase("rollouts"):
            scene, drawn = self._draw(number, plan)
            if scene is not None:
                completions, rollouts = method.roll_out(scene)
        with clock.phase("rewards"):
            if scene is not None:
                scored = scene.score(completions, rollouts)
                batch = method.judge(faulty_rewards(scored, c.faults), c)
            demonstrations = faulty_demonstrations(
                method.learn_from(self.policy, drawn, batch, number, c),
                number,
                c.seed,
                len(self.policy.tokenizer),
                c.faults,
            )
        with clock.phase("gradients"):
            align = due(c.probes.alignment_every, number) and demonstrations is not None
            if batch is not None:
                rl = self._rl("rl", batch, None, keep_blocks=align)
                if method.baseline and c.training.baseline_mode == "reset":
                    self._reset_baseline(rl.gradient.base)
                if method.baseline:
                    baseline_rl = self._rl("baseline_rl", batch, rl.logprobs_NC)
                elif self.tracks_baseline:  # RL only: standard advantages, whatever the method's
                    baseline_rl = self._rl("baseline_rl", judged(batch, c), rl.logprobs_NC)
            sft = per_demonstration = None
            if demonstrations is not None:
                sft, per_demonstration = self._sft(
                    demonstrations, rl.gradient if align and rl else None
                )
        with clock.phase("probes"):
            per_rollout = None
            if batch is not None and rl and due(c.probes.rollout_alignment_every, number):
                per_rollout = rollout_products(
                    self.policy,
                    batch,
                    rl.gradient.base,
                    sft.gradient.base if sft else None,
                    c.training,
                    c.sampling.temperature,
                    partial(method.rl_terms, c=c),
                )
            passes = Passes(
                batch, demonstrations, rl, baseline_rl, sft, per_demonstration, per_rollout
            )
            measured = measure(number, c, self.policy, self.task, passes, self.sets)
        with clock.phase("update"):
            directions = method.mix(
                Gradients(
                    rl=rl.gradient if rl else None,
                    sft=sft.gradient if sft else None,
                    baseline_rl=baseline_rl.gradient if baseline_rl else None,
                    step=number,
                ),
                c,
            )
            if self.tracks_baseline and baseline_rl is not None:
                directions = replace(directions, baseline=baseline_rl.gradient.base)
            directions = faulty_directions(directions, number, c.faults)
            after = method.afterwards(drawn, batch, self.state, c)
            if after.demonstrations:
                with self._put_back(*self.optimizers):
                    norms = self._update(directions)
                    norms["own_sft"] = self._sft_update(after.demonstrations)
            else:
                norms = self._update(directions)
            self.state = after.state
        return self._record(number, measured, norms, clock)

    def _draw(self, number: int, plan: Plan) -> tuple[Scene | None, list[Demonstration]]:
        """The step's prompts, if it needs any, and its demonstrations."""
        c, t = self.config, self.config.training
        aside = {d for d in self.demonstrations if d.id in t.set_aside}
        drawn: list[Demonstration] = []
        scene: Scene | None = None
        if plan.rollouts or self.tracks_baseline:
            n, shown = t.prompts_per_step, []
            if self.method.paired:
                drawn = shown = draw(self.demonstrations, n, number, c.seed, "prompts", aside)
                problems = [as_problem(d) for d in shown]
            else:
                problems = draw(self.problems, n, number, c.seed, "prompts")
            scene = Scene(self.policy, self.task, c, number, problems, shown)
        if plan.demonstrations and not self.method.paired:
            n = t.demonstrations_per_step
            drawn = draw(self.demonstrations, n, number, c.seed, "demonstrations", aside)
        return scene, drawn

    def _rl(
        self, name: str, batch: RolloutBatch, old: Tensor | None, keep_blocks: bool = False
    ) -> RLPass:
        c, joint = self.config, name == "rl"
        own = joint or self.method.baseline
        with self.watch(name):
            return rl_pass(
                name,
                self.policy.of("joint" if joint else "baseline"),
                self.policy.base if joint else self.policy.baseline_base,
                self.trained_coordinator,
                batch,
                c.training,
                c.sampling.temperature,
                old,
                keep_blocks,
                partial(self.method.rl_terms, c=c) if own else None,
                Keep(*self.policy.keep),
            )

    def _sft(
        self, batch: DemonstrationBatch, direction: Sides | None
    ) -> tuple[SFTPass, PerDemonstration | None]:
        with self.watch("sft"):
            return sft_pass(
                self.policy,
                self.trained_coordinator,
                batch.tokens,
                direction,
                self.config.training.micro_batch_tokens,
                partial(self.method.sft_terms, c=self.config),
                batch.advantages_D,
                batch.divisor,
            )

    def _sft_update(self, demonstrations: list[Demonstration]) -> tuple[float, float]:
        """One update of θ by SFT's own optimizer, with the gradient at the θ of now."""
        batch = pack_demonstrations(self.policy, demonstrations)
        max_tokens = self.config.training.micro_batch_tokens
        with self.watch("own_sft"):
            found, _ = sft_pass(self.policy, {}, batch.tokens, None, max_tokens)
        return self._apply("own_sft", found.gradient.base)

    @torch.no_grad()
    def _reset_baseline(self, rl_gradient: ParamVector) -> None:
        """θ̂ ← θ + one RL-only AdamW step with θ's optimizer state. [ours, ablation]"""
        self.policy.wait()
        for name, parameter in self.policy.baseline_base.items():
            parameter.copy_(self.policy.base[name])
        optimizer = self.optimizers["baseline"]
        optimizer.load_state_dict(copy.deepcopy(self.optimizers["base"].state_dict()))
        self._apply("baseline", rl_gradient)

    def _apply(self, part: str, direction: ParamVector) -> tuple[float, float]:
        """Clip, then one AdamW step up `direction`; returns the norm before and after clipping."""
        training = self.config.training
        norm = direction.norm()
        if not np.isfinite(norm):
            raise NonFiniteError("update", f"direction of {part}")
        scale = min(1.0, training.max_grad_norm / max(norm, 1e-12))
        optimizer = self.optimizers[part]
        lr = {"coordinator": training.coordinator_lr, "own_sft": training.sft_lr}.get(
            part, training.base_lr
        )
        for group in optimizer.param_groups:
            group["lr"] = lr
        self.policy.wait()  # an offloaded part is updated where it waits
        for parameters in chunks(self.parameters(part)):
            for name, parameter in parameters.items():  # optimizers descend
                parameter.grad = (-scale * direction[name]).to(parameter.device)
            optimizer.step()  # of those alone that have a gradient
            optimizer.zero_grad(set_to_none=True)
        return norm, norm * scale

    def _update(self, directions: Directions) -> dict[str, tuple[float, float]]:
        """The simultaneous updates; norms (before, after clipping) of each part that moved."""
        training = self.config.training
        wanted: dict[str, ParamVector] = {}
        if directions.base is not None:
            wanted["base"] = directions.base
        resets = self.method.baseline and training.baseline_mode == "reset"
        if directions.baseline is not None and not resets:
            wanted["baseline"] = directions.baseline
        if directions.coordinator is not None and training.train_coordinator:
            wanted["coordinator"] = directions.coordinator
        if directions.own_sft is not None:
            wanted["own_sft"] = directions.own_sft
        for part, direction in wanted.items():  # all are checked before any is applied
            if not np.isfinite(direction.norm()):
                raise NonFiniteError("update", f"direction of {part}")
        return {part: self._apply(part, direction) for part, direction in wanted.items()}

    def _record(
        self,
        number: int,
        measured: Measured,
        norms: dict[str, tuple[float, float]],
        clock: Clock,
    ) -> StepRecord:
        metrics = measured.metrics
        names = {
            "base": ("grad_norm", "grad_norm/clipped"),
            "baseline": ("baseline/grad_norm", "baseline/grad_norm_clipped"),
            "coordinator": ("coordinator/grad_norm", "coordinator/grad_norm_clipped"),
            "own_sft": ("own_sft/grad_norm", "own_sft/grad_norm_clipped"),
        }
        for part, (before, after) in norms.items():
            metrics[names[part][0]], metrics[names[part][1]] = before, after
        metrics["rl_weight"] = rl_weight(self.config, number)
        for name in ("base_lr", "coordinator_lr"):
            metrics[name] = self.config.get(name)
        for phase, seconds in clock.seconds.items():
            metrics[f"seconds/{phase}"] = seconds
        return StepRecord(
            number,
            metrics,
            measured.rollouts,
            measured.gain,
            measured.demonstrations,
            measured.alignment,
            measured.coordinator,
        )

    def optimizer_arrays(self) -> dict[str, np.ndarray]:
        """Adam's moments and step counts as named arrays: 'base/exp_avg/<parameter>', …

        With what the method remembers, where it does: STATE, as the bytes of JSON text.
        """
        arrays: dict[str, np.ndarray] = {}
        if self.state:
            text = json.dumps({"method": self.config.method, "state": self.state})
            arrays[STATE] = np.frombuffer(text.encode(), dtype=np.uint8).copy()
        for part, optimizer in self.optimizers.items():
            arrays |= moments(part, optimizer, self.parameters(part))
        return arrays

    def load_optimizer_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """Restore what `optimizer_arrays` gave; parts without arrays start fresh.

        Another method's memory is left behind: a fork may have changed the method.
        """
        self.state = {}
        self.policy.wait()
        if STATE in arrays:
            told = json.loads(arrays[STATE].tobytes().decode())
            if told["method"] == self.config.method:
                self.state = told["state"]
        for part, optimizer in self.optimizers.items():
            load_moments(part, optimizer, self.parameters(part), arrays)
