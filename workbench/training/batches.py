"""What a step trains on. Draws are counter-based: a function of (seed, step), never of the past."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, cycle
from math import isnan, nan
from typing import TypeVar

import torch
from torch import Tensor

from workbench.policy import Policy
from workbench.sampling import Completions, TokenBatch, pack
from workbench.tasks.environment import ENVIRONMENT, POLICY, Span
from workbench.tasks.problem import Demonstration, Problem
from workbench.tasks.scoring import Score

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
class Rollouts:
    """How a step's rollouts came about, where that was not simply prompt in, completion out.

    Each list has one entry a rollout, or none where it says nothing.
    """

    given_ids: Sequence[Sequence[int]] = ()
    """Tokens that stood behind the prompt before the policy began: a hint, a prefix."""
    given_writers: Sequence[Sequence[str]] = ()
    """Who wrote each of them."""
    writers: Sequence[Sequence[str]] = ()
    """Who wrote each completion token: POLICY, ENVIRONMENT, or another's name."""
    behaviour: Sequence[Sequence[float]] = ()
    """log-prob of each completion token as it was drawn; NaN: as π itself gives it now."""
    plan_length: Sequence[float] = ()
    """Steps of the plan a rollout was guided by; NaN where there was none."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Numbers of the step's record."""


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
    rollouts: Rollouts = Rollouts()
    """What else is known of how they came about."""
    shown_P: Sequence[Demonstration] = ()
    """Each prompt's own demonstration, where the method pairs them."""
    shown_rewards_P: Tensor | None = None
    """Its reward by the task, with flips where asked for."""
    shown_advantages_P: Tensor | None = None
    """Its advantage, where it is a member of the prompt's group."""
    kept_P: Tensor | None = None
    """1 where a prompt's rollouts are learned from, else 0; None: all are."""
    divisor: float | None = None
    """What the summed objective is divided by; None: the number of completion tokens."""
    scores_N: Sequence[Score] = ()
    """What the task's rewards said of each completion, part by part."""

    @property
    def group_size(self) -> int:
        """G, rollouts a prompt."""
        return self.rewards_PG.shape[1]

    @property
    def mask_NC(self) -> Tensor:
        """1 at each completion token that is learned from."""
        mask = self.tokens.completion_mask
        if self.kept_P is None:
            return mask
        return mask * self.kept_P.repeat_interleave(self.group_size)[:, None]

    @property
    def given_NC(self) -> Tensor | None:
        """1 at each completion token that another than the policy wrote; None: nowhere.

        The environment's are among them, but those are masked out everywhere.
        """
        if not self.rollouts.writers:
            return None
        given = torch.zeros_like(self.tokens.completion_mask)
        for i, writers in enumerate(self.rollouts.writers):
            for t, writer in enumerate(writers):
                given[i, t] = float(writer != POLICY)
        return given

    @property
    def behaviour_NC(self) -> Tensor | None:
        """`rollouts.behaviour` as a tensor, NaN at padding; None: all are π's own."""
        if not self.rollouts.behaviour:
            return None
        found = torch.full_like(self.tokens.completion_mask, nan)
        for i, values in enumerate(self.rollouts.behaviour):
            found[i, : len(values)] = torch.tensor(values, dtype=found.dtype)
        return found

    @property
    def own_P(self) -> list[int]:
        """Prompts whose rollouts are all the policy's own words on the plain prompt.

        And the environment's, where the task has one: it answers any policy alike.
        """
        r, size = self.rollouts, self.group_size
        own = [True] * len(self.rewards_PG.flatten())
        for i in range(len(own)):
            if r.given_ids and r.given_ids[i]:
                own[i] = False
            if r.writers and set(r.writers[i]) - {POLICY, ENVIRONMENT}:
                own[i] = False
            if r.behaviour and not all(isnan(value) for value in r.behaviour[i]):
                own[i] = False
        return [p for p in range(len(self.problems_P)) if all(own[p * size : (p + 1) * size])]


@dataclass(frozen=True)
class DemonstrationBatch:
    """The step's demonstrations."""

    demonstrations_D: list[Demonstration]
    tokens: TokenBatch
    advantages_D: Tensor | None = None
    """Each one's advantage in its prompt's group; None where the method has none."""
    divisor: float | None = None
    """What the summed objective is divided by; None: the number of completion tokens."""


def solution_tokens(policy: Policy, demonstration: Demonstration) -> tuple[list[int], list[str]]:
    """A solution's tokens, the end token last, and who wrote each: POLICY or ENVIRONMENT."""
    ids, writers = _encode(policy, _spans(demonstration))
    return [*ids, policy.encode_completion("")[-1]], [*writers, POLICY]


def opening(
    policy: Policy, demonstration: Demonstration, n_lines: int, writer: str = POLICY
) -> tuple[list[int], list[str]]:
    """The tokens of a solution's first lines, the line break behind them, and who wrote each.

    writer: what the policy's part is called. A line of an environment's answer is a whole line.
    """
    left = len("".join(f"{line}\n" for line in demonstration.solution.splitlines()[:n_lines]))
    cut: list[Span] = []
    for who, text in _spans(demonstration):
        cut.append(Span(writer if who == POLICY else who, text[:left]))
        left -= len(cut[-1].text)
    if left:  # the last line has no line break of its own
        cut.append(Span(writer, "\n"))
    return _encode(policy, cut)


def _spans(demonstration: Demonstration) -> Sequence[Span]:
    return demonstration.spans or (Span(POLICY, demonstration.solution),)


def _encode(policy: Policy, spans: Sequence[Span]) -> tuple[list[int], list[str]]:
    ids: list[int] = []
    writers: list[str] = []
    for writer, text in spans:
        if text:
            ids += policy.encode_completion(text)[:-1]
            writers += [writer] * (len(ids) - len(writers))
    return ids, writers


def pack_demonstrations(
    policy: Policy,
    demonstrations_D: Sequence[Demonstration],
    token_ids: Sequence[Sequence[int]] | None = None,
) -> DemonstrationBatch:
    """Encode demonstrations as the model sees them; `token_ids`: only these openings of solutions.

    What an environment wrote of them is masked out.
    """
    told = [solution_tokens(policy, d) for d in demonstrations_D]
    if token_ids is None:
        token_ids = [ids for ids, _ in told]
    writers = [
        who[: len(ids)] if d.spans else [POLICY] * len(ids)
        for d, ids, (_, who) in zip(demonstrations_D, token_ids, told, strict=True)
    ]
    return DemonstrationBatch(
        list(demonstrations_D),
        pack(
            [policy.encode_prompt(d.prompt) for d in demonstrations_D],
            token_ids,
            policy.pad_id,
            policy.device,
            writers,
        ),
    )


def as_problem(demonstration: Demonstration) -> Problem:
    """A demonstration's prompt as an RL prompt."""
    return Problem(demonstration.id, demonstration.prompt, demonstration.answer)
