"""HPT: for each prompt either RL or SFT, by how well it is solved (arXiv 2509.04419).

    accuracy of the prompt's rollouts ≤ γ:  SFT on its demonstration, its rollouts are dropped
    otherwise:                              Dr.GRPO on its rollouts

    J = J_DrGRPO(prompts above γ) + β J_SFT(prompts at or below γ)         β = 1.0, γ = 0 or 2/8

Each objective is a mean over its own samples: Dr.GRPO's over the kept rollouts × the length limit,
SFT's over the tokens of the demonstrations that are learned. [infer] (The released code divides
Dr.GRPO's sum by the length limit alone, so that RL weighs more the larger the batch.) kl_coef
holds for the kept rollouts as in `grpo`. Settings: hpt_gate (γ), hpt_sft_weight (β).
"""

from __future__ import annotations

from dataclasses import replace

from workbench.config import RunConfig
from workbench.policy import Policy
from workbench.tasks.problem import Demonstration
from workbench.training.batches import DemonstrationBatch, RolloutBatch, pack_demonstrations
from workbench.training.methods.method import Directions, Gradients, Method
from workbench.training.objectives import group_advantages
from workbench.training.vectors import ParamVector


def unsolved(
    policy: Policy, drawn: list[Demonstration], batch: RolloutBatch | None
) -> DemonstrationBatch | None:
    """The demonstrations of the prompts whose rollouts were dropped; None: there is none."""
    assert batch is not None and batch.kept_P is not None
    wanted = [d for d, kept in zip(drawn, batch.kept_P.tolist(), strict=True) if not kept]
    return pack_demonstrations(policy, wanted) if wanted else None


class HPT(Method):
    """A gate on each prompt's accuracy."""

    name = "hpt"
    demonstrations = True
    paired = True

    def judge(self, batch: RolloutBatch, c: RunConfig) -> RolloutBatch:
        """Dr.GRPO's advantages; prompts at or below the gate are dropped."""
        kept_P = (batch.rewards_PG.mean(1) > c.training.hpt_gate).to(batch.rewards_PG.dtype)
        n_kept = max(float(kept_P.sum()) * batch.group_size, 1.0)
        return replace(
            batch,
            advantages_PG=group_advantages(batch.rewards_PG, by_std=False),
            kept_P=kept_P,
            divisor=n_kept * c.sampling.max_new_tokens,
        )

    def learn_from(
        self,
        policy: Policy,
        drawn: list[Demonstration],
        batch: RolloutBatch | None,
        step: int,
        c: RunConfig,
    ) -> DemonstrationBatch | None:
        """The demonstrations of prompts at or below the gate."""
        return unsolved(policy, drawn, batch)

    def mix(self, g: Gradients, c: RunConfig) -> Directions:
        """g^R + β g^S."""
        assert g.rl
        if g.sft is None:
            return Directions(base=g.rl.base)
        return Directions(
            base=ParamVector.weighted(1.0, g.rl.base, c.training.hpt_sft_weight, g.sft.base)
        )
