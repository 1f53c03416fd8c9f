"""Naive mixing: θ ← θ + α [g^R + μ g^S], the gradient of −(L_RL + μ L_SFT).

μ is `sft_weight`; the paper's comparison uses μ = 1.
"""

from __future__ import annotations

from workbench.config import TrainingConfig
from workbench.training.methods.method import Directions, Gradients, Method


def mix(g: Gradients, c: TrainingConfig) -> Directions:
    """The sum of both gradients, SFT weighted by μ."""
    assert g.rl and g.sft
    return Directions(base=g.rl.base + c.sft_weight * g.sft.base)


METHOD = Method(
    "naive_mix", rollouts=True, demonstrations=True, baseline=False, coordinator=False, mix=mix
)
