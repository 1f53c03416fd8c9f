"""BRIDGE: cooperative SFT and RL (arXiv 2509.06948, ICML 2026).

    θ  ← θ  + α [(1−λ) g^S_θ + λ g^R_θ]
    θ̂  ← θ̂  + α ĝ_θ̂
    w  ← w  + β [(1−λ) g^S_w + λ (g^R_w − ĝ_w)]

The last bracket is the gradient of the cooperative gain J_RL(θ,w) − J_RL(θ̂,w). [paper]
Ablations: `coordinator_objective="mixed"` drops ĝ_w, the paper's "without J_meta" [paper];
`baseline_mode="reset"` rebuilds θ̂ each step, `train_coordinator=false` keeps w as it is,
`rl_weight_schedule` moves λ from rl_weight to rl_weight_end. [ours]
"""

from __future__ import annotations

from workbench.config import RunConfig
from workbench.training.methods.method import Directions, Gradients, Method
from workbench.training.schedules import rl_weight
from workbench.training.vectors import ParamVector


class Bridge(Method):
    """Three parts, three directions."""

    name = "bridge"
    demonstrations = True
    baseline = True
    coordinator = True

    def mix(self, g: Gradients, c: RunConfig) -> Directions:
        """The three simultaneous updates."""
        assert g.rl and g.sft and g.baseline_rl
        λ = rl_weight(c, g.step)
        base = ParamVector.weighted(1 - λ, g.sft.base, λ, g.rl.base)
        gain = g.rl.coordinator
        if c.training.coordinator_objective == "gain":
            gain = gain - g.baseline_rl.coordinator
        coordinator = ParamVector.weighted(1 - λ, g.sft.coordinator, λ, gain)
        return Directions(base, g.baseline_rl.base, coordinator)
