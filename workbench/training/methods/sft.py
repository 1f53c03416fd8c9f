"""Supervised fine-tuning: θ ← θ + α ∇ J_SFT(θ), the token-mean log-likelihood of demonstrations."""

from __future__ import annotations

from workbench.config import RunConfig
from workbench.training.methods.method import Directions, Gradients, Method


class SFT(Method):
    """Demonstrations alone."""

    name = "sft"
    rollouts = False
    demonstrations = True

    def mix(self, g: Gradients, c: RunConfig) -> Directions:
        """The SFT gradient alone."""
        assert g.sft
        return Directions(base=g.sft.base)
