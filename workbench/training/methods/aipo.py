"""AIPO: the policy may ask for help during a rollout (arXiv 2605.08401).

As soon as the policy writes a marker (`aipo_verify`, `aipo_knowledge`, `aipo_reasoning`) the
rollout halts, a helper answers, the answer is put behind the marker on a line of its own, and the
rollout goes on, at most `aipo_queries` times. At test time there is no helper.

    J = 1/n Σ_t  own tokens     min(ρ_t A, clip(ρ_t, 1−ε, 1+ε) A) − kl_coef·k3
                 helper tokens  c_t A log π_t,   c_t = sg(clip(π_t, 0.1, 1))

The helper wrote its tokens with probability 1, so π_t is their importance ratio; c_t bounds it from
below, or what the policy thinks unlikely would never be learned. No KL on them. The paper's exact
formula was not available to us: all of this is [infer]. A helper is any callable, or a chat
endpoint (`aipo_url`); the built-in ones look into the demonstration (training/asking.py). A query
without answer is left standing. Published: n = 8.

A policy that never writes a marker learns by plain GRPO.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from workbench.config import RunConfig, TrainingConfig
from workbench.policy import Policy
from workbench.sampling import Completions
from workbench.tasks.problem import Demonstration
from workbench.training.asking import Helper, Kind, NoAnswer, Query, make_helper
from workbench.training.batches import POLICY, DemonstrationBatch, RolloutBatch, Rollouts
from workbench.training.methods.method import Method
from workbench.training.objectives import RLTerms, RolloutTokens, grpo_terms
from workbench.training.scene import Scene

LEAST, MOST = 0.1, 1.0
"""Bounds of a helper token's importance coefficient."""


@dataclass
class _Open:
    """A rollout under way."""

    prompt: int
    prompt_ids: list[int]
    token_ids: list[int] = field(default_factory=list)
    writers: list[str] = field(default_factory=list)
    logprob: list[float] = field(default_factory=list)
    finished: bool = False
    halted: bool = True
    """Whether it has more to write."""


def markers(c: TrainingConfig) -> dict[Kind, str]:
    """What the policy writes to ask for each kind of help."""
    return {
        "verify": c.aipo_verify,
        "knowledge": c.aipo_knowledge,
        "reasoning": c.aipo_reasoning,
    }


def first_query(
    scene: Scene, token_ids: Sequence[int], c: TrainingConfig
) -> tuple[int, Kind] | None:
    """Where the first marker is complete, in tokens, and what it asks for; None: no marker."""
    if not any(marker in scene.text(token_ids) for marker in markers(c).values()):
        return None
    for n in range(1, len(token_ids) + 1):
        text = scene.text(token_ids[:n])
        for kind, marker in markers(c).items():
            if marker in text:
                return n, kind
    return None


class AIPO(Method):
    """GRPO on rollouts that helpers take part in."""

    name = "aipo"
    demonstrations = True
    paired = True

    def roll_out(self, scene: Scene) -> tuple[Completions, Rollouts]:
        """Rounds of writing and asking, all rollouts side by side."""
        c, size = scene.config, scene.config.training.group_size
        helper = make_helper(c.training)
        prompts = [
            scene.policy.encode_prompt(problem.prompt + c.training.aipo_prompt)
            for problem in scene.problems_P
        ]
        rows = [_Open(i // size, prompts[i // size]) for i in range(len(prompts) * size)]
        asked = failed = 0
        for turn in range(c.training.aipo_queries + 1):
            streams = [i for i, row in enumerate(rows) if row.halted]
            if not streams:
                break
            done = scene.sample(
                [[*rows[i].prompt_ids, *rows[i].token_ids] for i in streams],
                streams,
                "rollouts" if turn == 0 else f"rollouts, turn {turn}",
            )
            for at, i in enumerate(streams):
                row = rows[i]
                room = c.sampling.max_new_tokens - len(row.token_ids)
                ids = done.token_ids[at][:room]
                may_ask = turn < c.training.aipo_queries
                query = first_query(scene, ids, c.training) if may_ask else None
                end = len(ids) if query is None else query[0]
                row.token_ids += ids[:end]
                row.writers += [POLICY] * end
                row.logprob += done.logprob[at][:end]
                row.halted = False
                if query is None:
                    row.finished = done.finished[at] and end == len(done.token_ids[at])
                    continue
                asked += 1
                try:
                    _answer(scene, row, query[1], helper)
                except NoAnswer:
                    failed += 1
                row.halted = len(row.token_ids) < c.sampling.max_new_tokens
        return (
            Completions(
                [row.prompt_ids for row in rows],
                [row.token_ids for row in rows],
                [row.logprob for row in rows],
                [row.finished for row in rows],
                [scene.text(row.token_ids) for row in rows],
            ),
            Rollouts(
                writers=[row.writers for row in rows],
                metrics={"aipo/queries": asked / len(rows), "aipo/failed": float(failed)},
            ),
        )

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


def _answer(scene: Scene, row: _Open, kind: Kind, helper: Helper) -> None:
    """Have a query answered and put the answer behind it. Raises NoAnswer."""
    c, problem = scene.config, scene.problems_P[row.prompt]
    marker = markers(c.training)[kind]
    own = [x for x, who in zip(row.token_ids, row.writers, strict=True) if who == POLICY]
    written = scene.text(own).replace(marker, "")
    answer = helper(Query(kind, problem.prompt, scene.shown_P[row.prompt].solution, written))
    ids = scene.policy.encode_completion(f"\n{answer}\n")[:-1]
    ids = ids[: c.sampling.max_new_tokens - len(row.token_ids)]
    row.token_ids += ids
    row.writers += [kind] * len(ids)
    row.logprob += [0.0] * len(ids)
