"""SRFT: SFT and RL in one stage, weighted by entropy (arXiv 2506.19767).

For a prompt with own rollouts y_i (8) and demonstration y*:

    J_demo = 1/n*  Σ_demo Σ_t [ 0.5·sg(e^−H*) · log p_t  +  A*·p_t ]
    J_own  = 1/n   Σ_own  Σ_t [ right: 0.1·sg(e^H)·log π,  wrong: −log π ]
    J = J_demo + J_own

A* = (R* − mean) / (std + 1e-4) over own rollouts and demonstration, so the demonstration's RL term
has behaviour probability 1 and no clip. H is the mean token entropy, of that text, not of the
batch; so do HPT's authors in their copy of SRFT. n* and n are the tokens of demonstrations and of
rollouts. [infer, both]
J_demo is g^S, J_own g^R. Published: 8 rollouts, lr 1e-6, no KL.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from workbench.config import RunConfig
from workbench.policy import Policy
from workbench.tasks.problem import Demonstration
from workbench.training.batches import DemonstrationBatch, RolloutBatch, pack_demonstrations
from workbench.training.methods.method import Directions, Gradients, Method
from workbench.training.objectives import (
    DemonstrationTokens,
    RLTerms,
    RolloutTokens,
    group_advantages,
)


class SRFT(Method):
    """Single-stage fine-tuning."""

    name = "srft"
    demonstrations = True
    paired = True

    def judge(self, batch: RolloutBatch, c: RunConfig) -> RolloutBatch:
        """Advantages over own rollouts and demonstration."""
        assert batch.shown_rewards_P is not None
        group = torch.cat([batch.rewards_PG, batch.shown_rewards_P[:, None]], 1)
        advantages = group_advantages(group)
        return replace(
            batch, advantages_PG=advantages[:, :-1], shown_advantages_P=advantages[:, -1]
        )

    def learn_from(
        self,
        policy: Policy,
        drawn: list[Demonstration],
        batch: RolloutBatch | None,
        step: int,
        c: RunConfig,
    ) -> DemonstrationBatch | None:
        """The demonstrations, with their advantages."""
        assert batch is not None
        return replace(pack_demonstrations(policy, drawn), advantages_D=batch.shown_advantages_P)

    def rl_terms(self, t: RolloutTokens, c: RunConfig) -> RLTerms:
        """Right rollouts up, weighted by e^H; wrong ones down."""
        weight_N = torch.where(
            t.rewards_N > 0.5,
            c.training.srft_rl_weight * _mean_entropy(t.entropy(), t.mask_NC).exp(),
            -torch.ones_like(t.rewards_N),
        )
        return RLTerms((weight_N[:, None] * t.logprobs_NC * t.mask_NC).sum(), 0.0, 0.0)

    def sft_terms(self, t: DemonstrationTokens, c: RunConfig) -> Tensor:
        """The likelihood, weighted by e^−H, and A·p."""
        weight_D = c.training.srft_sft_weight * (-_mean_entropy(t.entropy(), t.mask_DC)).exp()
        return weight_D[:, None] * t.logprobs_DC + t.advantages_D[:, None] * t.logprobs_DC.exp()

    def mix(self, g: Gradients, c: RunConfig) -> Directions:
        """The sum."""
        assert g.rl and g.sft
        return Directions(base=g.rl.base + g.sft.base)


def _mean_entropy(entropy_NC: Tensor, mask_NC: Tensor) -> Tensor:
    """Mean token entropy of each text, without gradient: (N,)."""
    entropy = entropy_NC.detach() * mask_NC
    return entropy.sum(1) / mask_NC.sum(1).clamp(min=1)
