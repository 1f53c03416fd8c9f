"""What a task is made of: prompts with a verifiable answer, and demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from workbench.tasks.environment import Span

Split = Literal["train", "validation", "hard"]


@dataclass(frozen=True)
class Problem:
    """One RL prompt and the answer its reward checks."""

    id: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Demonstration:
    """One worked solution: SFT trains on `solution` given `prompt`.

    `quality` says what is wrong with it ("clean" if nothing, "unknown" for real data). No training
    code reads it: probes are judged against it.
    """

    id: str
    prompt: str
    solution: str
    answer: str
    quality: str = "unknown"
    spans: tuple[Span, ...] = ()
    """Who wrote what of `solution`, where an environment wrote some; only the policy's part of it
    is learned. Empty: all of it is."""


class Task(Protocol):
    """Where prompts, demonstrations and rewards come from."""

    def problems(self, split: Split) -> Sequence[Problem]:
        """The problems of a split, in a fixed order; empty where the task has no such split."""
        ...

    def demonstrations(self) -> Sequence[Demonstration]:
        """The demonstrations, in a fixed order."""
        ...

    def reward(self, completion: str, problem: Problem) -> float:
        """Verifiable reward of one completion: 1.0 correct, 0.0 wrong."""
        ...

    def extract(self, completion: str) -> str | None:
        """The final answer found in a completion; None where there is none."""
        ...
