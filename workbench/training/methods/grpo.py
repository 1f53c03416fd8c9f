"""GRPO, RL only ("RL-zero"): θ ← θ + α ∇ J_RL(θ).  Source: arXiv 2402.03300."""

from __future__ import annotations

from workbench.config import TrainingConfig
from workbench.training.methods.method import Directions, Gradients, Method


def mix(g: Gradients, c: TrainingConfig) -> Directions:
    """The RL gradient alone."""
    assert g.rl
    return Directions(base=g.rl.base)


METHOD = Method(
    "grpo", rollouts=True, demonstrations=False, baseline=False, coordinator=False, mix=mix
)
