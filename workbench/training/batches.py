"""What a step trains on. Draws are counter-based: a function of (seed, step), never of the past."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain, cycle
from typing import TypeVar

from torch import Tensor

from workbench.policy import Policy
from workbench.sampling import Completions, TokenBatch, pack
from workbench.tasks.problem import Demonstration, Problem

Item = TypeVar("Item")


def draw(
    items: Sequence[Item],
    count: int,
    step: int,
    seed: int,
    purpose: str,
    aside: Collection[Item] = (),
) -> list[Item]:
    """The items of step `step` (from 1): epochs without replacement, each newly shuffled.

    Items set `aside` are not drawn: each gives its place to another one, drawn for that step from
    those that stay and, while there are such, are not in it yet. All others keep their places, so
    the draw is a function of (seed, step, items, items aside), whenever they were set aside, and
    runs that differ in what is aside share the rest. Not all items may be aside.
    """
    chosen = []
    for position in range((step - 1) * count, step * count):
        epoch, index = divmod(position, len(items))
        order = list(range(len(items)))
        random.Random(f"{purpose}/{seed}/{epoch}").shuffle(order)
        chosen.append(items[order[index]])
    if not aside:
        return chosen
    staying = [item for item in items if item not in aside]
    random.Random(f"{purpose}/{seed}/step {step}/instead").shuffle(staying)
    instead = chain([item for item in staying if item not in chosen], cycle(staying))
    return [next(instead) if item in aside else item for item in chosen]


@dataclass(frozen=True)
class RolloutBatch:
    """The step's own rollouts, drawn once from θ+w and shared by g^R and ĝ."""

    problems_P: list[Problem]
    completions_N: Completions
    correct_PG: Tensor
    """The task's reward."""
    rewards_PG: Tensor
    """What training uses: `correct`, with flips where asked for."""
    advantages_PG: Tensor
    tokens: TokenBatch
    reference_logprobs_NC: Tensor | None
    """log π_ref; None where the run keeps no reference."""

    @property
    def group_size(self) -> int:
        """G, rollouts a prompt."""
        return self.rewards_PG.shape[1]


@dataclass(frozen=True)
class DemonstrationBatch:
    """The step's demonstrations."""

    demonstrations_D: list[Demonstration]
    tokens: TokenBatch


def pack_demonstrations(
    policy: Policy, demonstrations_D: Sequence[Demonstration]
) -> DemonstrationBatch:
    """Encode demonstrations as the model sees them."""
    return DemonstrationBatch(
        list(demonstrations_D),
        pack(
            [policy.encode_prompt(d.prompt) for d in demonstrations_D],
            [policy.encode_completion(d.solution) for d in demonstrations_D],
            policy.pad_id,
            policy.device,
        ),
    )
