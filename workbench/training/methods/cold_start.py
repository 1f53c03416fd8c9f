"""Cold start: `sft` for k steps, then `grpo`; the usual two stages.

    step ≤ k:  θ ← θ + sft_lr  ∇ J_SFT(θ)
    step > k:  θ ← θ + base_lr ∇ J_RL(θ)          k = cold_start_steps

Each stage has its own optimizer, so RL begins with fresh moments, as a second training would.
[infer] The KL of the second stage is to the model before both, where two trainings would take the
model after the first [ours]. arXiv 2604.23747 shows how published cold-start numbers were deflated
by micro-batches that were weighted alike whatever their tokens, and by wrong accumulation: here
every token of the step's demonstrations weighs the same, however it is cut into micro-batches.
"""

from __future__ import annotations

from workbench.config import RunConfig
from workbench.training.methods.method import Directions, Gradients, Method, Plan


class ColdStart(Method):
    """One objective at a time."""

    name = "cold_start"
    demonstrations = True
    own_sft = True

    def plan(self, step: int, c: RunConfig) -> Plan:
        """Demonstrations first, rollouts after."""
        first = step <= c.training.cold_start_steps
        return Plan(rollouts=not first, demonstrations=first)

    def mix(self, g: Gradients, c: RunConfig) -> Directions:
        """The gradient of the stage."""
        if g.step <= c.training.cold_start_steps:
            assert g.sft
            return Directions(own_sft=g.sft.base)
        assert g.rl
        return Directions(base=g.rl.base)
