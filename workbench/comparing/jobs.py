"""What a comparison runs: which methods, seeds and learning rates, and for how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from workbench.comparing.outcome import Outcome
from workbench.config import (
    ArithmeticTaskConfig,
    ConfigError,
    GymTaskConfig,
    RunConfig,
    ToolsTaskConfig,
)

TRIAL_SEED = 1000
"""Run seed and task seed of learning-rate trials; reported runs should use neither."""

ONE = (1.0, 0.5, 2.0, 0.25, 4.0, 0.125, 8.0, 0.0625)
"""Trials of a method with one rate, as factors of the preset's, from the middle outwards."""
TWO = ((1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 4.0), (1.0, 0.25), (0.25, 1.0), (4.0, 1.0),
       (2.0, 4.0))  # fmt: skip
"""Trials of a method with two: no more of them, so that nobody wins by tuning."""
SECOND_RATE = {
    "bridge": "coordinator_lr",
    "cold_start": "sft_lr",
    "alternating": "sft_lr",
    "relift": "sft_lr",
}
"""The second learning rate of the methods that have one."""


@dataclass(frozen=True)
class Budget:
    """When a run has had its share; every run of a comparison has the same."""

    kind: Literal["steps", "tokens", "seconds"] = "steps"
    amount: float = 0.0
    """Generated tokens, or seconds of training without probes; for steps: `Comparison.steps`."""

    def __str__(self) -> str:
        return "steps" if self.kind == "steps" else f"{self.amount:g} {self.kind}"


@dataclass(frozen=True)
class Rates:
    """Factors of the learning rates in the config."""

    base: float = 1.0
    second: float = 1.0


@dataclass(frozen=True)
class Job:
    """One run of a comparison."""

    kind: Literal["trial", "report"]
    method: str
    seed: int
    rates: Rates
    config: RunConfig
    steps: int
    """It ends here at the latest, whatever the budget."""
    budget: Budget
    run: Path
    """Its run folder."""

    @property
    def checkpoints(self) -> list[int]:
        """Steps after which whole splits are evaluated: a third, two thirds, all.

        Both splits; of a trial, which is chosen by validation, that one alone.
        """
        return sorted({max(1, round(self.steps * part / 3)) for part in (1, 2, 3)})


@dataclass(frozen=True)
class Comparison:
    """A comparison as asked for."""

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    base: RunConfig
    """What all runs share."""
    steps: int
    run: Path
    """Folder of all its runs and of the report."""
    budget: Budget = Budget()
    sweep: int = 0
    """Learning-rate trials of each method; 0: the config's rates for all."""
    target: float | None = None
    """Accuracy of which steps and seconds are told; None: 90 % of the best mean at the end."""
    tuned_in: Comparison | None = None
    """The comparison whose sweep chooses the learning rates of this one; None: its own sweep."""

    def __post_init__(self) -> None:
        if len(set(self.methods)) < len(self.methods) or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError("compare: a method or seed is given twice")
        if self.sweep > len(ONE):
            raise ConfigError(f"--sweep-lr: at most {len(ONE)} trials (got {self.sweep})")
        if self.sweep and TRIAL_SEED in self.seeds:
            raise ConfigError(f"--seeds: {TRIAL_SEED} is the seed of the learning-rate trials")
        if self.tuned_in and (self.sweep or not set(self.methods) <= set(self.tuned_in.methods)):
            raise ConfigError("compare: another comparison's sweep must cover all its methods")

    @property
    def tuned(self) -> bool:
        """Whether the learning rates were chosen by trials, here or in another comparison."""
        return self.sweep > 0 or (self.tuned_in is not None and self.tuned_in.sweep > 0)

    def trials(self) -> list[Job]:
        """The learning-rate sweep: another seed, and another task seed where the task has one.

        Of `tuned_in`, where that is given: the methods are those of this comparison.
        """
        if self.tuned_in:
            return [job for job in self.tuned_in.trials() if job.method in self.methods]
        return [
            self._job("trial", method, TRIAL_SEED, rates)
            for method in self.methods
            for rates in _trials(method)[: self.sweep]
        ]

    def reports(self, chosen: dict[str, Rates]) -> list[Job]:
        """The reported runs."""
        return [
            self._job("report", method, seed, chosen.get(method, Rates()))
            for method in self.methods
            for seed in self.seeds
        ]

    def _job(self, kind: Literal["trial", "report"], method: str, seed: int, rates: Rates) -> Job:
        changes: dict[str, Any] = {"method": method, "seed": seed}
        changes["base_lr"] = self.base.training.base_lr * rates.base
        if method in SECOND_RATE:
            name = SECOND_RATE[method]
            changes[name] = self.base.get(name) * rates.second
        if kind == "trial" and isinstance(self.base.task, ArithmeticTaskConfig):
            changes["task_seed"] = TRIAL_SEED
        if kind == "trial" and isinstance(self.base.task, GymTaskConfig):
            changes["gym_seed"] = TRIAL_SEED
        if kind == "trial" and isinstance(self.base.task, ToolsTaskConfig):
            changes["tools_seed"] = TRIAL_SEED
        config = self.base.with_changes(**changes)
        tried = f"-lr{rates.base:g}x{rates.second:g}" if kind == "trial" or self.tuned else ""
        name = f"{kind}-{method.replace(':', '.')}{tried}-seed{seed}"
        steps, budget = self.steps, self.budget
        return Job(kind, method, seed, rates, config, steps, budget, self.run / name)


def _trials(method: str) -> list[Rates]:
    if method in SECOND_RATE:
        return [Rates(*pair) for pair in TWO]
    return [Rates(factor) for factor in ONE]


def choose(done: Sequence[tuple[Job, Outcome]], method: str) -> Rates:
    """The trial with the best mean validation accuracy over its checkpoints.

    The end alone would tie where methods saturate; on a tie the smaller rates win. Raises
    ConfigError where the task has no validation problems.
    """
    mine = [(job, outcome) for job, outcome in done if job.method == method]
    if any(isnan(value) for _, outcome in mine for value in outcome.accuracy):
        raise ConfigError("--sweep-lr: the task has no validation problems to choose a rate by")
    best = max(
        mine,
        key=lambda it: (fmean(it[1].accuracy), -it[0].rates.base, -it[0].rates.second),
    )
    return best[0].rates
