"""Naive mixing: θ ← θ + α [g^R + μ g^S], the gradient of −(L_RL + μ L_SFT).

μ is `sft_weight`; the paper's comparison uses μ = 1.
"""

from __future__ import annotations

from workbench.config import RunConfig
from workbench.training.methods.method import Directions, Gradients, Method
from workbench.training.vectors import ParamVector


class NaiveMix(Method):
    """Both objectives, summed."""

    name = "naive_mix"
    demonstrations = True

    def mix(self, g: Gradients, c: RunConfig) -> Directions:
        """The sum of both gradients, SFT weighted by μ."""
        assert g.rl and g.sft
        return Directions(
            base=ParamVector.weighted(1.0, g.rl.base, c.training.sft_weight, g.sft.base)
        )
