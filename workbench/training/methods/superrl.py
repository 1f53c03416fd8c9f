"""SuperRL: RL where there is any reward, SFT where there is none (arXiv 2506.01096).

prompts with a rewarded rollout:   J_RL, the policy gradient that `rl_loss` names
prompts without:                   J_SFT of their demonstration, their rollouts are dropped

J = J_RL(rewarded) + J_SFT(unrewarded)         each a mean over its own tokens [infer]
"""

from __future__ import annotations

from workbench.config import RunConfig
from workbench.policy import Policy
from workbench.tasks.problem import Demonstration
from workbench.training.batches import DemonstrationBatch, RolloutBatch
from workbench.training.methods.hpt import unsolved
from workbench.training.methods.method import Directions, Gradients, Method, judged


class SuperRL(Method):
    """A switch on each prompt."""

    name = "superrl"
    demonstrations = True
    paired = True

    def judge(self, batch: RolloutBatch, c: RunConfig) -> RolloutBatch:
        """Prompts without reward are dropped."""
        kept_P = (batch.rewards_PG > 0).any(1).to(batch.rewards_PG.dtype)
        return judged(batch, c, kept_P)

    def learn_from(
        self,
        policy: Policy,
        drawn: list[Demonstration],
        batch: RolloutBatch | None,
        step: int,
        c: RunConfig,
    ) -> DemonstrationBatch | None:
        """The demonstrations of the others."""
        return unsolved(policy, drawn, batch)

    def mix(self, g: Gradients, c: RunConfig) -> Directions:
        """The sum."""
        assert g.rl
        return Directions(base=g.rl.base if g.sft is None else g.rl.base + g.sft.base)
