"""BRIDGE: cooperative SFT and RL (arXiv 2509.06948, ICML 2026).

    θ  ← θ  + α [(1−λ) g^S_θ + λ g^R_θ]
    θ̂  ← θ̂  + α ĝ_θ̂
    w  ← w  + β [(1−λ) g^S_w + λ (g^R_w − ĝ_w)]

The last bracket is the gradient of the cooperative gain J_RL(θ,w) − J_RL(θ̂,w). [paper]
`coordinator_objective="mixed"` drops ĝ_w, the paper's ablation "without J_meta". [paper]
"""

from __future__ import annotations

from workbench.config import TrainingConfig
from workbench.training.methods.method import Directions, Gradients, Method


def mix(g: Gradients, c: TrainingConfig) -> Directions:
    """The three simultaneous updates."""
    assert g.rl and g.sft and g.baseline_rl
    λ = c.rl_weight
    base = (1 - λ) * g.sft.base + λ * g.rl.base
    gain = g.rl.coordinator
    if c.coordinator_objective == "gain":
        gain = gain - g.baseline_rl.coordinator
    coordinator = (1 - λ) * g.sft.coordinator + λ * gain
    return Directions(base, g.baseline_rl.base, coordinator)


METHOD = Method(
    "bridge", rollouts=True, demonstrations=True, baseline=True, coordinator=True, mix=mix
)
