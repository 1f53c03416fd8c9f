"""LUFFY: the demonstration as a member of its prompt's group (arXiv 2504.14945).

Group of 8 = 7 own rollouts + the demonstration y*, A = R − mean over all 8, no std:

    J = 1/(N·L) · [ Σ_own Σ_t ρ_t A_i  +  Σ_demo Σ_t f(p_t) A*  +  c_H · Σ_own Σ_t H_t ]

    f(p) = p/(p + γ), γ = 0.1        ρ without clip        no KL        c_H = 1e-3

N is the number of sequences, demonstrations included, L the length limit (max_new_tokens): the
constant that the paper's padded length is. The first and last sums are g^R, the middle one g^S.
The entropy bonus is on the policy's own tokens and divided as the rest is [infer]; the released
code adds its mean over all tokens, y*'s included, to sums that are divided by L alone. R of y* is
the task's reward of it, so a flawed demonstration with a wrong answer counts as wrong.
Group size: `group_size`, the demonstration included. Published: 8, lr 1e-6.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from workbench.config import RunConfig
from workbench.policy import Policy
from workbench.sampling import Completions
from workbench.tasks.problem import Demonstration
from workbench.training.batches import (
    DemonstrationBatch,
    RolloutBatch,
    Rollouts,
    pack_demonstrations,
)
from workbench.training.methods.method import Directions, Gradients, Method
from workbench.training.objectives import DemonstrationTokens, RLTerms, RolloutTokens
from workbench.training.scene import Scene


def advantages_with_demonstration(
    rewards_PG: Tensor, shown_rewards_P: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """R − mean over own rollouts and demonstration: (P, G) own, (P,) demonstrations'.

    None for the demonstrations: the group is the own rollouts alone.
    """
    if shown_rewards_P is None:
        return rewards_PG - rewards_PG.mean(1, keepdim=True), None
    mean_P = torch.cat([rewards_PG, shown_rewards_P[:, None]], 1).mean(1)
    return rewards_PG - mean_P[:, None], shown_rewards_P - mean_P


class Luffy(Method):
    """Mixed-policy GRPO with policy shaping."""

    name = "luffy"
    demonstrations = True
    paired = True

    def roll_out(self, scene: Scene) -> tuple[Completions, Rollouts]:
        """One rollout less than the group has: its last member is the demonstration."""
        return scene.plain(scene.config.training.group_size - 1), Rollouts()

    def judge(self, batch: RolloutBatch, c: RunConfig) -> RolloutBatch:
        """Advantages over the whole group."""
        own, shown = advantages_with_demonstration(batch.rewards_PG, batch.shown_rewards_P)
        n_sequences = own.numel() + (0 if shown is None else len(shown))
        return replace(
            batch,
            advantages_PG=own,
            shown_advantages_P=shown,
            divisor=float(n_sequences * c.sampling.max_new_tokens),
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
        return replace(
            pack_demonstrations(policy, drawn),
            advantages_D=batch.shown_advantages_P,
            divisor=batch.divisor,
        )

    def rl_terms(self, t: RolloutTokens, c: RunConfig) -> RLTerms:
        """ρ A and the entropy."""
        ratio = (t.logprobs_NC - t.old_logprobs_NC).exp()
        per_token = ratio * t.advantages_N[:, None]
        if c.training.luffy_entropy > 0:
            per_token = per_token + c.training.luffy_entropy * t.entropy()
        return RLTerms((per_token * t.mask_NC).sum(), 0.0, 0.0)

    def sft_terms(self, t: DemonstrationTokens, c: RunConfig) -> Tensor:
        """f(p) A."""
        p = t.logprobs_DC.exp()
        return p / (p + c.training.luffy_shape) * t.advantages_D[:, None]

    def mix(self, g: Gradients, c: RunConfig) -> Directions:
        """One objective: the two gradients are its two sums."""
        assert g.rl and g.sft
        return Directions(base=g.rl.base + g.sft.base)
