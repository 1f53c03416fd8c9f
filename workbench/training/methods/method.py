"""What a method is: what it samples, what it maximises, and how it mixes the gradients.

A step of any method is made of two objectives and their gradients at the old weights,

    g^R   of the policy's own rollouts       (`rl_terms`)
    g^S   of demonstrations                  (`sft_terms`)

and `mix` says how each part of the model moves. A demonstration that a paper puts into the group
as one more member is g^S with its advantage: the sum is the same, and the probes can tell the two
apart. A method overrides what differs from GRPO and SFT, nothing else.

One of your own: a subclass of `Method` in a module that Python can import, then
`--method mymodule:MyMethod`. A method object holds nothing: what it must remember from step to
step is a JSON value, its `state`, which snapshots keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from workbench.config import RunConfig
from workbench.policy import Policy
from workbench.sampling import Completions
from workbench.tasks.problem import Demonstration
from workbench.training import objectives
from workbench.training.batches import (
    DemonstrationBatch,
    RolloutBatch,
    Rollouts,
    pack_demonstrations,
)
from workbench.training.objectives import DemonstrationTokens, RLTerms, RolloutTokens
from workbench.training.scene import Scene
from workbench.training.vectors import ParamVector


@dataclass(frozen=True)
class Sides:
    """One objective's gradient: over the base weights and over the coordinator."""

    base: ParamVector
    coordinator: ParamVector

    def __sub__(self, other: Sides) -> Sides:
        return Sides(self.base - other.base, self.coordinator - other.coordinator)

    def add_(self, other: Sides) -> None:
        """Add in place."""
        self.base.add_(other.base)
        self.coordinator.add_(other.coordinator)

    def clone(self) -> Sides:
        """A copy that in-place addition to the original leaves alone."""
        return Sides(self.base.clone(), self.coordinator.clone())


@dataclass(frozen=True)
class Gradients:
    """Ascent directions at the old (θ, θ̂, w). A method finds those it asked for; others are None.

    g^S is None as well where no demonstration was learned from in this step.
    """

    rl: Sides | None
    """g^R: ∇ J_RL(θ, w)."""
    sft: Sides | None
    """g^S: ∇ J_SFT(θ, w)."""
    baseline_rl: Sides | None
    """ĝ: ∇ J_RL(θ̂, w); its base side is over θ̂."""
    step: int = 1
    """The step's number, from 1."""


@dataclass(frozen=True)
class Directions:
    """The ascent direction of each part; None leaves the part as it is."""

    base: ParamVector | None = None
    baseline: ParamVector | None = None
    coordinator: ParamVector | None = None
    own_sft: ParamVector | None = None
    """A direction of θ for the optimizer and learning rate that SFT has of its own (`sft_lr`)."""


@dataclass(frozen=True)
class Plan:
    """What one step needs."""

    rollouts: bool
    demonstrations: bool


@dataclass(frozen=True)
class Afterwards:
    """An SFT update of θ that follows the step's own, and the state to go on with."""

    demonstrations: list[Demonstration]
    """Learned in one update at the new θ, by SFT's own optimizer; empty: none."""
    state: dict[str, Any]


class Method:
    """GRPO's hooks, for a method to override. Class attributes say what a run of it needs."""

    name: ClassVar[str]
    rollouts: ClassVar[bool] = True
    """Takes g^R in some step."""
    demonstrations: ClassVar[bool] = False
    """Takes g^S in some step."""
    paired: ClassVar[bool] = False
    """RL prompts are those of the demonstrations, so that each has a demonstration of its own."""
    baseline: ClassVar[bool] = False
    """Keeps the RL-only baseline θ̂ and needs ĝ."""
    coordinator: ClassVar[bool] = False
    """Trains w."""
    own_sft: ClassVar[bool] = False
    """Has an optimizer of its own for SFT steps."""

    def plan(self, step: int, c: RunConfig) -> Plan:
        """What step `step` (from 1) needs."""
        return Plan(self.rollouts, self.demonstrations)

    def roll_out(self, scene: Scene) -> tuple[Completions, Rollouts]:
        """Draw the step's rollouts, whole groups of one size in the order of `scene.problems_P`."""
        return scene.plain(scene.config.training.group_size), Rollouts()

    def judge(self, batch: RolloutBatch, c: RunConfig) -> RolloutBatch:
        """Set advantages, `kept_P` and `divisor`, from the rewards. Here: as `rl_loss` wants it."""
        return judged(batch, c)

    def learn_from(
        self,
        policy: Policy,
        drawn: list[Demonstration],
        batch: RolloutBatch | None,
        step: int,
        c: RunConfig,
    ) -> DemonstrationBatch | None:
        """The demonstrations of g^S; None: no g^S in this step. Here: those drawn, whole.

        drawn: the step's draw; for a paired method those of the step's prompts, in their order.
        """
        return pack_demonstrations(policy, drawn) if drawn else None

    def rl_terms(self, t: RolloutTokens, c: RunConfig) -> RLTerms:
        """J_RL of some rollouts, summed; it is divided by the batch's `divisor`."""
        return objectives.rl_terms(t, c.training)

    def sft_terms(self, t: DemonstrationTokens, c: RunConfig) -> Tensor:
        """J_SFT at each token, (D, C); the sum is divided by the batch's `divisor`."""
        return t.logprobs_DC

    def mix(self, g: Gradients, c: RunConfig) -> Directions:
        """The simultaneous updates, from unclipped gradients, before the optimizers."""
        assert g.rl
        return Directions(base=g.rl.base)

    def afterwards(
        self,
        drawn: list[Demonstration],
        batch: RolloutBatch | None,
        state: Mapping[str, Any],
        c: RunConfig,
    ) -> Afterwards:
        """What follows the update. Must be a function of its arguments alone."""
        return Afterwards([], dict(state))


def judged(batch: RolloutBatch, c: RunConfig, kept_P: Tensor | None = None) -> RolloutBatch:
    """Advantages and divisor as `rl_loss` has them, of the groups that are kept (None: all)."""
    by_std = c.training.rl_loss != "dr_grpo"
    batch = replace(
        batch,
        advantages_PG=objectives.group_advantages(batch.rewards_PG, by_std),
        kept_P=kept_P,
    )
    if kept_P is None and c.training.rl_loss == "grpo":
        return batch
    divisor = objectives.rl_divisor(
        batch.mask_NC,
        batch.advantages_PG.flatten(),
        c.training,
        c.sampling.max_new_tokens,
    )
    return replace(batch, divisor=divisor)
