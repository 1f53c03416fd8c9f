"""What the rollouts, rewards and gradients phases of a step hand to its probes."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.training.batches import DemonstrationBatch, RolloutBatch
from workbench.training.gradients import PerDemonstration, RLPass, SFTPass
from workbench.training.rollout_products import PerRollout


@dataclass(frozen=True)
class Passes:
    """What these phases found; None where the method has none."""

    batch: RolloutBatch | None
    demonstrations: DemonstrationBatch | None
    rl: RLPass | None
    baseline_rl: RLPass | None
    sft: SFTPass | None
    per_demonstration: PerDemonstration | None
    per_rollout: PerRollout | None

    @property
    def trains_coordinator(self) -> bool:
        """Whether the gradients are over w as well."""
        return self.rl is not None and bool(self.rl.gradient.coordinator)
