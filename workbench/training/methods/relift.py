"""ReLIFT: RL, with SFT on the hardest questions now and then (arXiv 2506.07527).

    θ ← θ + base_lr ∇ J_RL(θ)
    prompts whose rollouts are all wrong put their demonstration into a buffer; as soon as it holds
    `relift_buffer` (128), those make one SFT step, θ ← θ + sft_lr ∇ J_SFT(θ), and leave it

RL and SFT have an optimizer each. A demonstration that is in the buffer already is not put there
again. [infer] The buffer is the method's state, which snapshots keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.config import RunConfig
from workbench.policy import Policy
from workbench.tasks.problem import Demonstration
from workbench.training.batches import DemonstrationBatch, RolloutBatch
from workbench.training.methods.method import Afterwards, Method


class ReLIFT(Method):
    """GRPO with a buffer."""

    name = "relift"
    demonstrations = True
    paired = True
    own_sft = True

    def learn_from(
        self,
        policy: Policy,
        drawn: list[Demonstration],
        batch: RolloutBatch | None,
        step: int,
        c: RunConfig,
    ) -> DemonstrationBatch | None:
        """Nothing in the RL update."""
        return None

    def afterwards(
        self,
        drawn: list[Demonstration],
        batch: RolloutBatch | None,
        state: Mapping[str, Any],
        c: RunConfig,
    ) -> Afterwards:
        """Fill the buffer; empty it into an SFT step when it is full."""
        assert batch is not None
        # kept whole, not as ids: the task need not be asked for demonstrations of the past
        buffer = [dict(held) for held in state.get("buffer", [])]
        ids = {held["id"] for held in buffer}
        for demonstration, rewards in zip(batch.shown_P, batch.rewards_PG, strict=True):
            if not bool((rewards > 0).any()) and demonstration.id not in ids:
                buffer.append(dict(vars(demonstration)))
                ids.add(demonstration.id)
        size = c.training.relift_buffer
        if len(buffer) < size:
            return Afterwards([], {"buffer": buffer})
        return Afterwards(
            [Demonstration(**held) for held in buffer[:size]], {"buffer": buffer[size:]}
        )
