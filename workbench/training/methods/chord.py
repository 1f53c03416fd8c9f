"""CHORD: SFT as a weighted auxiliary objective of RL (arXiv 2508.11408).

    J = (1 − μ) J_RL + μ J_SFT            each a mean over its own tokens

    chord_mu   μ: 0.9 → 0.05 on a cosine over 200 steps;  J_SFT = mean log p_t
    chord_phi  μ = 0.1, constant;  J_SFT = mean φ_t log p_t,  φ_t = sg(p_t (1 − p_t))

φ is largest at p = 1/2: it leaves out what the policy knows already and what would upset it.
Settings: chord_start, chord_end, chord_steps; chord_phi_weight.
"""

from __future__ import annotations

from torch import Tensor

from workbench.config import RunConfig
from workbench.training.methods.method import Directions, Gradients, Method
from workbench.training.objectives import DemonstrationTokens
from workbench.training.schedules import scheduled
from workbench.training.vectors import ParamVector


def mixed(g: Gradients, μ: float) -> Directions:
    """(1 − μ) g^R + μ g^S."""
    assert g.rl and g.sft
    return Directions(base=ParamVector.weighted(1 - μ, g.rl.base, μ, g.sft.base))


class ChordMu(Method):
    """The global weight μ, on a schedule."""

    name = "chord_mu"
    demonstrations = True

    def mix(self, g: Gradients, c: RunConfig) -> Directions:
        """μ of this step."""
        t = c.training
        return mixed(g, scheduled("cosine", t.chord_start, t.chord_end, g.step, t.chord_steps))


class ChordPhi(Method):
    """The token-wise weight φ, at a constant μ."""

    name = "chord_phi"
    demonstrations = True

    def sft_terms(self, t: DemonstrationTokens, c: RunConfig) -> Tensor:
        """φ log p."""
        p = t.logprobs_DC.detach().exp()
        return p * (1 - p) * t.logprobs_DC

    def mix(self, g: Gradients, c: RunConfig) -> Directions:
        """μ is constant."""
        return mixed(g, c.training.chord_phi_weight)
