"""Supervised fine-tuning: θ ← θ + α ∇ J_SFT(θ), the token-mean log-likelihood of demonstrations."""

from __future__ import annotations

from workbench.config import TrainingConfig
from workbench.training.methods.method import Directions, Gradients, Method


def mix(g: Gradients, c: TrainingConfig) -> Directions:
    """The SFT gradient alone."""
    assert g.sft
    return Directions(base=g.sft.base)


METHOD = Method(
    "sft", rollouts=False, demonstrations=True, baseline=False, coordinator=False, mix=mix
)
