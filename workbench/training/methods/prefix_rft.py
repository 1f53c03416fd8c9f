"""Prefix-RFT: one rollout of each group goes on from a piece of the demonstration (2507.01679).

    G − 1 own rollouts and one that begins with the first l tokens of y*,
    l/|y*| ~ U(low, 0.95),  low: 0.95 → 0 on a cosine

    J = 1/n · [ Σ_own Σ_t min(ρA, clip(ρ)A) − kl_coef·k3  +  Σ_prefix Σ_{t in top 20 % of H} ρ_t A ]

The prefix shares the advantage of the rollout it opened, and only its tokens of highest entropy are
learned; ρ_t = π/sg(π) = 1 there. n: the own tokens and the prefix tokens learned. [infer] The first
sum is g^R (continuation included), the second g^S. Published: lr 1e-6. `rl_loss` holds for g^R.
The share of each prompt is drawn from (seed, step, prompt). An empty prefix (prefix_high = 0) is
GRPO. Settings: prefix_low, prefix_high, prefix_steps, prefix_entropy_share.
"""

from __future__ import annotations

import random
from dataclasses import replace
from math import ceil

import torch
from torch import Tensor

from workbench.config import RunConfig
from workbench.policy import Policy
from workbench.sampling import Completions
from workbench.tasks.environment import ENVIRONMENT
from workbench.tasks.problem import Demonstration
from workbench.training.batches import (
    DemonstrationBatch,
    RolloutBatch,
    Rollouts,
    pack_demonstrations,
    solution_tokens,
)
from workbench.training.methods.method import Directions, Gradients, Method, judged
from workbench.training.objectives import DemonstrationTokens
from workbench.training.scene import Scene
from workbench.training.schedules import scheduled


class PrefixRFT(Method):
    """Rollouts that a demonstration begins."""

    name = "prefix_rft"
    demonstrations = True
    paired = True

    def roll_out(self, scene: Scene) -> tuple[Completions, Rollouts]:
        """The last rollout of each group begins with a prefix."""
        c = scene.config
        low = scheduled("cosine", c.training.prefix_low, 0.0, scene.step, c.training.prefix_steps)
        given: list[tuple[list[int], list[str]]] = []
        for demonstration in scene.shown_P:
            solution, writers = solution_tokens(scene.policy, demonstration)
            draw = random.Random(f"prefix/{c.seed}/{scene.step}/{demonstration.id}")
            share = draw.uniform(min(low, c.training.prefix_high), c.training.prefix_high)
            n = int(share * (len(solution) - 1))
            while writers[n] == ENVIRONMENT:  # what an action brings about belongs to it
                n += 1
            told = [who if who == ENVIRONMENT else "demonstration" for who in writers[:n]]
            given += [([], []) for _ in range(c.training.group_size - 1)]
            given.append((solution[:n], told))
        return scene.given(given)

    def judge(self, batch: RolloutBatch, c: RunConfig) -> RolloutBatch:
        """Count the prefix tokens among those the objective is a mean of."""
        batch = judged(batch, c)
        own = [sum(w != ENVIRONMENT for w in who) for who in batch.rollouts.given_writers]
        n_prefix = sum(_learned(n, c) for n in own)
        n_own = batch.tokens.n_tokens if batch.divisor is None else batch.divisor
        if c.training.rl_loss in ("grpo", "dapo") and n_prefix:
            return replace(batch, divisor=n_own + n_prefix)
        return batch

    def learn_from(
        self,
        policy: Policy,
        drawn: list[Demonstration],
        batch: RolloutBatch | None,
        step: int,
        c: RunConfig,
    ) -> DemonstrationBatch | None:
        """The prefixes, each with the advantage of the rollout it opened."""
        assert batch is not None
        size = batch.group_size
        prefixes = [batch.rollouts.given_ids[p * size + size - 1] for p in range(len(drawn))]
        chosen = [p for p, prefix in enumerate(prefixes) if prefix]
        if not chosen:
            return None
        packed = pack_demonstrations(
            policy, [drawn[p] for p in chosen], [prefixes[p] for p in chosen]
        )
        return replace(
            packed,
            advantages_D=batch.advantages_PG[chosen, -1],
            divisor=batch.divisor or float(batch.tokens.n_tokens),
        )

    def sft_terms(self, t: DemonstrationTokens, c: RunConfig) -> Tensor:
        """ρ A at the tokens of highest entropy."""
        entropy = t.entropy().detach().masked_fill(t.mask_DC == 0, -torch.inf)
        place = entropy.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # 0: highest
        wanted = torch.tensor([_learned(int(n), c) for n in t.mask_DC.sum(1)], device=place.device)
        ratio = (t.logprobs_DC - t.logprobs_DC.detach()).exp()
        return ratio * t.advantages_D[:, None] * (place < wanted[:, None])

    def mix(self, g: Gradients, c: RunConfig) -> Directions:
        """One objective."""
        assert g.rl
        return Directions(base=g.rl.base if g.sft is None else g.rl.base + g.sft.base)


def _learned(n_tokens: int, c: RunConfig) -> int:
    """How many tokens of a prefix are learned."""
    return ceil(c.training.prefix_entropy_share * n_tokens)
