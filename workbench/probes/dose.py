"""Dose–response: the reward as a function of the coordinator's scale.

Rollout k of problem i is noise stream i·K + k at every scale, and for the policy the run started
from too, so that scales are compared rollout by rollout on common random numbers. [ours]
"""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.policy import Policy, PolicyName
from workbench.probes.drawing import complete_each
from workbench.probes.paired import NOTHING, PairedDifference, mean_error, paired_difference
from workbench.records import DoseRow
from workbench.sampling import Completions, Noise
from workbench.tasks.problem import Problem, Task

_UNKNOWN = PairedDifference(nan, nan, nan, nan)


class Drawn(NamedTuple):
    """K completions of each of P problems."""

    completions_N: Completions
    rewards_PK: Tensor
    """float64 (P, K)."""

    def changed_from(self, other: Drawn) -> float:
        """Share of rollouts whose tokens differ from those of the same noise in `other`."""
        pairs = zip(self.completions_N.token_ids, other.completions_N.token_ids, strict=True)
        return sum(a != b for a, b in pairs) / len(self.completions_N.token_ids)


def draw(
    policy: Policy,
    name: PolicyName,
    task: Task,
    problems: Sequence[Problem],
    *,
    rollouts: int,
    noise: Noise,
    max_new_tokens: int,
    temperature: float,
    batch: int = 256,
) -> Drawn:
    """Draw K = `rollouts` completions a problem; equal noise, equal random numbers."""
    done = complete_each(
        policy,
        name,
        task,
        [problem.prompt for problem in problems],
        rollouts=rollouts,
        noise=noise,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        batch=batch,
    )
    owners = [problem for problem in problems for _ in range(rollouts)]
    rewards = [task.reward(text, p) for text, p in zip(done.texts, owners, strict=True)]
    shape = (len(problems), rollouts)
    return Drawn(done, torch.tensor(rewards, dtype=torch.float64).view(shape))


def dose_response(
    policy: Policy,
    task: Task,
    problems: Sequence[Problem],
    scales: Sequence[float],
    *,
    rollouts: int,
    noise: Noise,
    max_new_tokens: int,
    temperature: float,
    batch: int = 256,
) -> list[DoseRow]:
    """Reward of the joint policy with the coordinator at each of `scales`, one row a scale.

    Rewards in [0, 1], at least two rollouts a problem. Every row is compared with scale 0 and,
    where the run keeps it, with the policy it started from.
    """

    def at(name: PolicyName, scale: float) -> Drawn:
        with policy.coordinator_scale(scale):
            return draw(
                policy,
                name,
                task,
                problems,
                rollouts=rollouts,
                noise=noise,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                batch=batch,
            )

    off = at("joint", 0.0)
    start = at("reference", 1.0) if policy.reference is not None else None
    rows = []
    for scale in scales:
        here = off if scale == 0 else at("joint", scale)
        gained = NOTHING if here is off else paired_difference(here.rewards_PK, off.rewards_PK)
        moved = paired_difference(here.rewards_PK, start.rewards_PK) if start else _UNKNOWN
        rows.append(
            DoseRow(
                scale=float(scale),
                reward=float(here.rewards_PK.mean()),
                reward_error=mean_error(here.rewards_PK),
                difference=gained.difference,
                standard_error=gained.standard_error,
                low=gained.low,
                high=gained.high,
                start_difference=moved.difference,
                start_standard_error=moved.standard_error,
                start_low=moved.low,
                start_high=moved.high,
                changed=here.changed_from(off),
                n_problems=len(problems),
                n_rollouts=rollouts,
            )
        )
    return rows
