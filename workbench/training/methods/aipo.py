"""AIPO: the policy may ask for help during a rollout (arXiv 2605.08401).

As soon as the policy writes a marker (`aipo_verify`, `aipo_knowledge`, `aipo_reasoning`) the
rollout halts, a helper answers, the answer is put behind the marker on a line of its own, and the
rollout goes on, at most `aipo_queries` times. At test time there is no helper.

    J = 1/n Σ_t  own tokens     min(ρ_t A, clip(ρ_t, 1−ε, 1+ε) A) − kl_coef·k3
                 helper tokens  c_t A log π_t,   c_t = sg(clip(π_t, 0.1, 1))

The helper wrote its tokens with probability 1, so π_t is their importance ratio; c_t bounds it from
below, or what the policy thinks unlikely would never be learned. No KL on them. The paper's exact
formula was not available to us: all of this is [infer]. A helper is a function of yours
(`aipo_helper`) or a chat endpoint (`aipo_url`); the built-in ones look into the demonstration
(training/asking.py). A query without answer is left standing. Published: n = 8.

A policy that never writes a marker learns by plain GRPO.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from workbench.config import RunConfig, TrainingConfig
from workbench.policy import Policy
from workbench.sampling import Completions
from workbench.tasks.environment import Reply, Together
from workbench.tasks.problem import Demonstration, Problem
from workbench.training.asking import Helper, Kind, NoAnswer, Query, make_helper
from workbench.training.batches import DemonstrationBatch, RolloutBatch, Rollouts
from workbench.training.methods.method import Method
from workbench.training.objectives import RLTerms, RolloutTokens, grpo_terms
from workbench.training.scene import Scene

LEAST, MOST = 0.1, 1.0
"""Bounds of a helper token's importance coefficient."""


def markers(c: TrainingConfig) -> dict[Kind, str]:
    """What the policy writes to ask for each kind of help."""
    return {
        "verify": c.aipo_verify,
        "knowledge": c.aipo_knowledge,
        "reasoning": c.aipo_reasoning,
    }


def first_query(turn: str, c: TrainingConfig) -> Kind | None:
    """What a turn asks for, by its first marker; None: nothing."""
    at = {kind: turn.find(marker) for kind, marker in markers(c).items()}
    asked = [(place, kind) for kind, place in at.items() if place >= 0]
    return min(asked)[1] if asked else None


@dataclass
class _Helped:
    """The helpers of one rollout, as its environment."""

    c: TrainingConfig
    helper: Helper
    problem: Problem
    shown: Demonstration
    asked: int = 0
    failed: int = 0
    given: dict[int, str] = field(default_factory=dict)
    """Steps that were put in, by the turn they stand behind."""

    @property
    def ends(self) -> str:
        return "".join(marker[-1] for marker in markers(self.c).values())

    def reply(self, turns: Sequence[str]) -> Reply | None:
        kind = first_query(turns[-1], self.c)
        if kind is None or self.asked >= self.c.aipo_queries:
            return None
        self.asked += 1
        written = "".join(turn + self.given.get(i, "") for i, turn in enumerate(turns))
        for marker in markers(self.c).values():
            written = written.replace(marker, "")
        try:
            answer = self.helper(Query(kind, self.problem.prompt, self.shown.solution, written))
        except NoAnswer:
            self.failed += 1
            return Reply("", kind)
        if kind == "reasoning":  # verdicts and hints are no part of the work
            self.given[len(turns) - 1] = f"\n{answer}\n"
        return Reply(f"\n{answer}\n", kind)


class AIPO(Method):
    """GRPO on rollouts that helpers take part in."""

    name = "aipo"
    demonstrations = True
    paired = True

    def roll_out(self, scene: Scene) -> tuple[Completions, Rollouts]:
        """The helpers take part as the task's own environment does, and beside it."""
        c, size = scene.config, scene.config.training.group_size
        helper = make_helper(c.training)
        owners = [i // size for i in range(len(scene.problems_P) * size)]
        helped = [
            _Helped(c.training, helper, scene.problems_P[p], scene.shown_P[p]) for p in owners
        ]
        prompts = [
            scene.policy.encode_prompt(problem.prompt + c.training.aipo_prompt)
            for problem in scene.problems_P
        ]
        own = scene.environments(owners)
        done = scene.sample(
            owners,
            range(len(owners)),
            prompt_ids=[prompts[p] for p in owners],
            environments=helped
            if own is None
            else [Together(both) for both in zip(own, helped, strict=True)],
        )
        n = len(owners)
        metrics = {
            "aipo/queries": sum(each.asked for each in helped) / n,
            "aipo/failed": float(sum(each.failed for each in helped)),
        }
        return done, Rollouts(metrics=metrics)

    def learn_from(
        self,
        policy: Policy,
        drawn: list[Demonstration],
        batch: RolloutBatch | None,
        step: int,
        c: RunConfig,
    ) -> DemonstrationBatch | None:
        """Demonstrations serve the helpers; none is learned."""
        return None

    def rl_terms(self, t: RolloutTokens, c: RunConfig) -> RLTerms:
        """GRPO on own tokens, bounded importance on the helpers'."""
        given = torch.zeros_like(t.mask_NC) if t.given_NC is None else t.given_NC
        own = grpo_terms(
            t.logprobs_NC,
            t.old_logprobs_NC,
            t.advantages_N,
            t.mask_NC * (1 - given),
            c.training.clip_range,
            t.reference_logprobs_NC,
            c.training.kl_coef,
        )
        coefficient = t.logprobs_NC.detach().exp().clamp(LEAST, MOST)
        theirs = coefficient * t.advantages_N[:, None] * t.logprobs_NC * t.mask_NC * given
        return RLTerms(own.objective_sum + theirs.sum(), own.kl_sum, own.clipped_sum)
