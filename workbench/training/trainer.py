"""One meta-training step, phase by phase. Knows no Session, no store, no UI.

A step is a function of (weights, optimizer states, config, seed, step number): nothing else enters.
All gradients and probes are taken at the old weights; the update comes last and at once.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from workbench.config import RunConfig, due
from workbench.policy import Policy
from workbench.records import StepRecord
from workbench.sampling import Completions, Noise, batch_logprobs, pack, sample
from workbench.tasks.problem import Problem, Task
from workbench.tasks.rewards import flip
from workbench.training.batches import (
    DemonstrationBatch,
    RolloutBatch,
    draw,
    pack_demonstrations,
)
from workbench.training.gradients import NonFiniteError, RLPass, rl_pass, sft_pass
from workbench.training.measure import Measured, Passes, measure
from workbench.training.methods import METHODS, Directions, Gradients
from workbench.training.objectives import group_advantages
from workbench.training.rollout_products import rollout_products
from workbench.training.vectors import ParamVector

Control = Callable[[str], None]
"""Called with a phase's name just before it begins; may block, or raise to abandon the step."""


Watch = Callable[[str], AbstractContextManager[object]]
"""Entered around each backward pass, with its name: "rl", "baseline_rl", "sft", …"""


class Clock:
    """Times the phases of a step and passes each beginning on to the control point."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """One named phase; waiting at its control point is not counted."""
        self.control(name)
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started


class Trainer:
    """The optimizers of θ, θ̂ and w, and the phases of a step."""

    def __init__(self, config: RunConfig, policy: Policy, task: Task) -> None:
        self.config, self.policy, self.task = config, policy, task
        self.watch: Watch = lambda name: nullcontext()
        self.method = METHODS[config.method]
        self.problems = task.problems("train")
        self.demonstrations = task.demonstrations() if self.method.demonstrations else []
        self.trained_coordinator = policy.coordinator if self.method.coordinator else {}
        self.optimizers: dict[str, torch.optim.AdamW] = {"base": self._adamw(policy.base)}
        if self.method.baseline:
            self.optimizers["baseline"] = self._adamw(policy.baseline_base)
        if self.method.coordinator:
            self.optimizers["coordinator"] = self._adamw(policy.coordinator)

    def _adamw(self, parameters: dict[str, Parameter]) -> torch.optim.AdamW:
        # lr is set before every step, from the config in force
        return torch.optim.AdamW(parameters.values(), lr=0.0, weight_decay=0.0)

    def parameters(self, part: str) -> dict[str, Parameter]:
        """The parameters an optimizer ('base', 'baseline', 'coordinator') moves, by name."""
        return {
            "base": self.policy.base,
            "baseline": self.policy.baseline_base,
            "coordinator": self.policy.coordinator,
        }[part]

    def step(self, number: int, control: Control = lambda phase: None) -> StepRecord:
        """Run step `number` (from 1) and apply its update.

        Raises NonFiniteError before anything is applied, and whatever `control` raises.
        """
        with self._baseline_put_back():
            return self._step(number, control)

    @contextmanager
    def _baseline_put_back(self) -> Iterator[None]:
        """Where θ̂ is rebuilt within a step, an abandoned step leaves it as it was."""
        if not self.method.baseline or self.config.training.baseline_mode == "persistent":
            yield
            return
        weights = {name: p.detach().clone() for name, p in self.policy.baseline_base.items()}
        optimizer = copy.deepcopy(self.optimizers["baseline"].state_dict())
        try:
            yield
        except BaseException:
            with torch.no_grad():
                for name, parameter in self.policy.baseline_base.items():
                    parameter.copy_(weights[name])
            self.optimizers["baseline"].load_state_dict(optimizer)
            raise

    def _step(self, number: int, control: Control) -> StepRecord:
        c, method, clock = self.config, self.method, Clock(control)
        batch: RolloutBatch | None = None
        demonstrations: DemonstrationBatch | None = None
        rl: RLPass | None = None
        baseline_rl: RLPass | None = None
        with clock.phase("rollouts"):
            if method.rollouts:
                problems = draw(
                    self.problems, c.training.prompts_per_step, number, c.seed, "prompts"
                )
                completions = sample(
                    self.policy.model,
                    self.policy.tokenizer,
                    [
                        self.policy.encode_prompt(p.prompt)
                        for p in problems
                        for _ in range(c.training.group_size)
                    ],
                    noise=Noise(c.seed, number, "rollouts"),
                    sequences=range(len(problems) * c.training.group_size),
                    end_ids=self.policy.end_ids,
                    max_new_tokens=c.sampling.max_new_tokens,
                    temperature=c.sampling.temperature,
                    batch=c.sampling.sampling_batch,
                )
        with clock.phase("rewards"):
            if method.rollouts:
                batch = self._score(number, problems, completions)
            if method.demonstrations:
                demonstrations = pack_demonstrations(
                    self.policy,
                    draw(
                        self.demonstrations,
                        c.training.demonstrations_per_step,
                        number,
                        c.seed,
                        "demonstrations",
                        {d for d in self.demonstrations if d.id in c.training.set_aside},
                    ),
                )
        with clock.phase("gradients"):
            align = due(c.probes.alignment_every, number) and demonstrations is not None
            if batch is not None:
                rl = self._rl("rl", self.policy.base, batch, None, keep_blocks=align)
            if method.baseline:
                assert rl is not None and batch is not None
                if c.training.baseline_mode == "reset":
                    self._reset_baseline(rl.gradient.base)
                baseline_rl = self._rl(
                    "baseline_rl", self.policy.baseline_base, batch, rl.logprobs_NC
                )
            sft = per_demonstration = None
            if demonstrations is not None:
                direction = rl.gradient if align and rl else None
                with self.watch("sft"):
                    sft, per_demonstration = sft_pass(
                        self.policy,
                        self.trained_coordinator,
                        demonstrations.tokens,
                        direction,
                        c.training.micro_batch_tokens,
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
                )
            passes = Passes(
                batch, demonstrations, rl, baseline_rl, sft, per_demonstration, per_rollout
            )
            measured = measure(number, c, self.policy, self.task, passes)
        with clock.phase("update"):
            directions = method.mix(
                Gradients(
                    rl=rl.gradient if rl else None,
                    sft=sft.gradient if sft else None,
                    baseline_rl=baseline_rl.gradient if baseline_rl else None,
                ),
                c.training,
            )
            norms = self._update(directions)
        return self._record(number, measured, norms, clock)

    def _score(
        self, number: int, problems: list[Problem], completions: Completions
    ) -> RolloutBatch:
        c = self.config
        shape = (len(problems), c.training.group_size)
        owners = [p for p in problems for _ in range(c.training.group_size)]
        correct = [
            self.task.reward(text, p) for text, p in zip(completions.texts, owners, strict=True)
        ]
        rewards = [
            flip(r, c.training.reward_flip, c.seed, number, i) for i, r in enumerate(correct)
        ]
        rewards_PG = torch.tensor(rewards, device=self.policy.device).view(shape)
        tokens = pack(
            completions.prompt_ids, completions.token_ids, self.policy.pad_id, self.policy.device
        )
        reference = None
        if self.policy.reference is not None:
            reference = batch_logprobs(
                self.policy.reference,
                tokens,
                c.sampling.temperature,
                c.training.micro_batch_tokens,
            )
        return RolloutBatch(
            problems,
            completions,
            torch.tensor(correct, device=self.policy.device).view(shape),
            rewards_PG,
            group_advantages(rewards_PG),
            tokens,
            reference,
        )

    def _rl(
        self,
        name: str,
        base: dict[str, Parameter],
        batch: RolloutBatch,
        old: Tensor | None,
        keep_blocks: bool = False,
    ) -> RLPass:
        with self.watch(name):
            return rl_pass(
                name,
                self.policy.of("joint" if name == "rl" else "baseline"),
                base,
                self.trained_coordinator,
                batch,
                self.config.training,
                self.config.sampling.temperature,
                old,
                keep_blocks,
            )

    @torch.no_grad()
    def _reset_baseline(self, rl_gradient: ParamVector) -> None:
        """θ̂ ← θ + one RL-only AdamW step with θ's optimizer state. [ours, ablation]"""
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
        lr = training.coordinator_lr if part == "coordinator" else training.base_lr
        for group in optimizer.param_groups:
            group["lr"] = lr
        for name, parameter in self.parameters(part).items():
            parameter.grad = -scale * direction[name]  # optimizers descend
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm, norm * scale

    def _update(self, directions: Directions) -> dict[str, tuple[float, float]]:
        """The simultaneous updates; norms (before, after clipping) of each part that moved."""
        training = self.config.training
        wanted: dict[str, ParamVector] = {}
        if directions.base is not None:
            wanted["base"] = directions.base
        if directions.baseline is not None and training.baseline_mode == "persistent":
            wanted["baseline"] = directions.baseline
        if directions.coordinator is not None and training.train_coordinator:
            wanted["coordinator"] = directions.coordinator
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
        }
        for part, (before, after) in norms.items():
            metrics[names[part][0]], metrics[names[part][1]] = before, after
        for name in ("rl_weight", "base_lr", "coordinator_lr"):
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
        """Adam's moments and step counts as named arrays: 'base/exp_avg/<parameter>', …"""
        arrays = {}
        for part, optimizer in self.optimizers.items():
            for name, parameter in self.parameters(part).items():
                for key, value in optimizer.state.get(parameter, {}).items():
                    arrays[f"{part}/{key}/{name}"] = value.detach().cpu().numpy().copy()
        return arrays

    def load_optimizer_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """Restore what `optimizer_arrays` gave; parts without arrays start fresh."""
        for part, optimizer in self.optimizers.items():
            optimizer.state.clear()
            for name, parameter in self.parameters(part).items():
                state = {
                    key: torch.from_numpy(arrays[f"{part}/{key}/{name}"].copy())
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if f"{part}/{key}/{name}" in arrays
                }
                if state:
                    device = parameter.device
                    optimizer.state[parameter] = {
                        k: v if k == "step" else v.to(device) for k, v in state.items()
                    }
