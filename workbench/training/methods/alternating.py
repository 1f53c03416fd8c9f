"""Alternating: in each step one `grpo` update, then one `sft` update, at two learning rates.

    θ' = θ  + base_lr ∇ J_RL(θ)
    θ  ← θ' + sft_lr  ∇ J_SFT(θ')

Each update has an optimizer of its own. [infer] The second gradient is taken after the first
update. Where the alignment is due, ∇ J_SFT(θ) at the old weights is taken too, to be measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.config import RunConfig, due
from workbench.policy import Policy
from workbench.tasks.problem import Demonstration
from workbench.training.batches import DemonstrationBatch, RolloutBatch, pack_demonstrations
from workbench.training.methods.method import Afterwards, Method


class Alternating(Method):
    """GRPO, and an SFT update behind each."""

    name = "alternating"
    demonstrations = True
    own_sft = True

    def learn_from(
        self,
        policy: Policy,
        drawn: list[Demonstration],
        batch: RolloutBatch | None,
        step: int,
        c: RunConfig,
    ) -> DemonstrationBatch | None:
        """At the old weights demonstrations are measured, not learned."""
        if not due(c.probes.alignment_every, step):
            return None
        return pack_demonstrations(policy, drawn)

    def afterwards(
        self,
        drawn: list[Demonstration],
        batch: RolloutBatch | None,
        state: Mapping[str, Any],
        c: RunConfig,
    ) -> Afterwards:
        """The SFT update."""
        return Afterwards(drawn, dict(state))
