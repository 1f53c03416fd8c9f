"""UFT: the prompt carries a part of the solution, ever less of it (arXiv 2505.16984).

    hint = the first l lines of y* (of L),  l ~ Binomial(L, p),
    p: 0.95 → 0.05 on a cosine over `uft_hint_steps` (300 of 500), then no hint at all
    J = J_RL(continuation given prompt and hint) + 1e-3 · mean_t log π(hint_t)

All lines may be hinted but the last. [infer] (The released code cuts y* into five pieces at most.)
One hint a prompt, shared by its group, drawn from (seed, step, prompt). g^R is the first term, g^S
the mean log-likelihood of the hints. Settings: uft_hint_steps, uft_hint_high, uft_hint_low,
uft_sft_weight. After the hints this is GRPO.
"""

from __future__ import annotations

import random

from workbench.config import RunConfig
from workbench.policy import Policy
from workbench.sampling import Completions
from workbench.tasks.problem import Demonstration
from workbench.training.batches import (
    DemonstrationBatch,
    RolloutBatch,
    Rollouts,
    opening,
    pack_demonstrations,
)
from workbench.training.methods.method import Directions, Gradients, Method
from workbench.training.scene import Scene
from workbench.training.schedules import scheduled


class UFT(Method):
    """Hints that fade."""

    name = "uft"
    demonstrations = True
    paired = True

    def roll_out(self, scene: Scene) -> tuple[Completions, Rollouts]:
        """Whole groups behind the same hint."""
        c = scene.config
        t, size = c.training, c.training.group_size
        if scene.step > t.uft_hint_steps:
            return scene.plain(size), Rollouts()
        share = scheduled("cosine", t.uft_hint_high, t.uft_hint_low, scene.step, t.uft_hint_steps)
        given: list[tuple[list[int], list[str]]] = []
        for demonstration in scene.shown_P:
            # all lines may be hinted but the last, or nothing would be left to find
            n_lines = len(demonstration.solution.splitlines()) - 1
            draw = random.Random(f"hint/{c.seed}/{scene.step}/{demonstration.id}")
            shown = sum(draw.random() < share for _ in range(n_lines))
            hint = opening(scene.policy, demonstration, shown, "hint")
            given += [hint for _ in range(size)]
        return scene.given(given)

    def learn_from(
        self,
        policy: Policy,
        drawn: list[Demonstration],
        batch: RolloutBatch | None,
        step: int,
        c: RunConfig,
    ) -> DemonstrationBatch | None:
        """The hints."""
        assert batch is not None
        hints = batch.rollouts.given_ids[:: batch.group_size]
        shown = [(d, hint) for d, hint in zip(drawn, hints, strict=False) if hint]
        if not shown:
            return None
        return pack_demonstrations(policy, [d for d, _ in shown], [hint for _, hint in shown])

    def mix(self, g: Gradients, c: RunConfig) -> Directions:
        """g^R + 1e-3 g^S."""
        assert g.rl
        if g.sft is None:
            return Directions(base=g.rl.base)
        return Directions(base=g.rl.base + c.training.uft_sft_weight * g.sft.base)
