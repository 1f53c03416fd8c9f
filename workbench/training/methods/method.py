"""What a method is: which gradients it needs and how it mixes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from workbench.config import TrainingConfig
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
    """Ascent directions at the old (θ, θ̂, w). A method finds those it declared; others are None."""

    rl: Sides | None
    """g^R: ∇ J_RL(θ, w)."""
    sft: Sides | None
    """g^S: ∇ J_SFT(θ, w)."""
    baseline_rl: Sides | None
    """ĝ: ∇ J_RL(θ̂, w); its base side is over θ̂."""


@dataclass(frozen=True)
class Directions:
    """The ascent direction of each part; None leaves the part as it is."""

    base: ParamVector | None = None
    baseline: ParamVector | None = None
    coordinator: ParamVector | None = None


@dataclass(frozen=True)
class Method:
    """One training method. `mix` acts before the optimizers, on unclipped gradients."""

    name: str
    rollouts: bool
    """Needs g^R."""
    demonstrations: bool
    """Needs g^S."""
    baseline: bool
    """Keeps the RL-only baseline θ̂ and needs ĝ."""
    coordinator: bool
    """Trains w."""
    mix: Callable[[Gradients, TrainingConfig], Directions]
