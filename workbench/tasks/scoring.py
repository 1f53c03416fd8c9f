"""The reward of a completion as a weighted mean of parts, each kept, and what a failing part does.

    reward = Σ weight_i · part_i / Σ weight_i

With parts in [0, 1] the reward is too, so that pass rates and `reward_flip` keep their meaning.
A part that fails counts as 0 and says why. [ours]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from workbench.tasks.problem import Problem


@dataclass(frozen=True)
class Part:
    """What one reward says of a completion."""

    value: float
    extracted: str = ""
    """The answer it found there; empty where it looks for none."""


Reward = Callable[[str, Problem], Part]
"""Scores a completion of a problem; whatever it raises is an error of the reward."""


@dataclass(frozen=True)
class Score:
    """What all rewards say of a completion."""

    reward: float
    """The weighted mean of the parts."""
    extracted: str = ""
    """The answer found; empty where none was."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """By the rewards' names; none where the task's own reward is the only one."""
    error: str = ""
    """Why parts count as 0 that could not be had; empty where all could."""


@dataclass(frozen=True)
class NamedReward:
    """A reward, what its part is called and how much it counts."""

    name: str
    weight: float
    reward: Reward


def combine(rewards: Sequence[NamedReward], completion: str, problem: Problem) -> Score:
    """Score a completion; the answer is what the first reward that finds one says."""
    parts: dict[str, float] = {}
    extracted, errors = "", []
    for named in rewards:
        try:
            part = named.reward(completion, problem)
            value = float(part.value)
            if not math.isfinite(value):
                raise ValueError(f"gave {value}, which is no reward")
        except Exception as error:  # a reward's own fault must not end the run: it is counted
            part, value = Part(0.0), 0.0
            errors.append(f"{named.name}: {type(error).__name__}: {_one_line(str(error))}")
        parts[named.name] = value
        extracted = extracted or part.extracted
    total = sum(named.weight for named in rewards)
    reward = sum(named.weight * parts[named.name] for named in rewards) / total
    return Score(reward, extracted, parts, "; ".join(errors))


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else line[:199] + "…"
