"""A task with what its config asks for beyond it: other rewards, other demonstrations, limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import get_args

from workbench.config import ConfigError, RewardConfig, TaskSettings
from workbench.tasks.environment import Environment, Interactive, spans
from workbench.tasks.gym import GymTask
from workbench.tasks.problem import Demonstration, Problem, Split, Task
from workbench.tasks.rewards_math import MathReward
from workbench.tasks.rewards_text import choice, exact, pattern_found, user_function
from workbench.tasks.scoring import NamedReward, Part, Reward, Score, combine

Encode = Callable[[str], list[int]]
"""Token ids of a prompt, or of a completion, as the model sees it."""


def make_reward(config: RewardConfig, task: Task) -> Reward:
    """The reward a config describes, for completions of `task`'s problems. Raises ConfigError."""
    if config.kind == "math":
        return MathReward(config.seconds, config.characters)
    if config.kind == "exact":
        return exact(task.extract, config.pattern)
    if config.kind == "choice":
        return choice(config.letters)
    if config.kind == "pattern":
        return pattern_found(config.pattern)
    if config.kind == "function":
        return user_function(config.function)
    if config.kind == "gym":
        if not isinstance(task, GymTask):
            raise ConfigError("rewards.kind: 'gym' scores tasks of kind 'gym' only")
        return lambda completion, problem: _gym_part(task, config.threshold, completion, problem)
    return lambda completion, problem: Part(
        task.reward(completion, problem), task.extract(completion) or ""
    )


def _gym_part(task: GymTask, threshold: float, completion: str, problem: Problem) -> Part:
    found = task.extract(completion)
    score = 0.0 if found is None else task.partial_credit(found, problem)
    return Part(float(score >= threshold) if threshold else score, found or "")


class PreparedTask:
    """A task under its `TaskSettings`."""

    def __init__(self, task: Task, settings: TaskSettings, demonstrations: Task | None) -> None:
        """demonstrations: the task they come from; None: `task` itself. Raises ConfigError."""
        self.inner, self.settings = task, settings
        self._source = demonstrations or task
        self._rewards = [
            NamedReward(c.label, c.weight, make_reward(c, task)) for c in settings.rewards
        ]
        self._encode: tuple[Encode, Encode] | None = None
        self._splits: dict[Split, list[Problem]] = {}
        self._demonstrations: list[Demonstration] | None = None
        self.dropped: dict[str, int] = {}
        """How many prompts ('train', 'validation', 'hard') and 'demonstrations' were left out."""

    def limit(self, encode_prompt: Encode, encode_completion: Encode) -> None:
        """Leave out what is longer than the settings allow, from now on.

        Raises ConfigError where no training prompt is left.
        """
        self._encode = encode_prompt, encode_completion
        self._splits.clear()
        self._demonstrations = None
        if not self.problems("train"):
            raise ConfigError(
                f"task.max_prompt_tokens: all {self.dropped['train']} training prompts are longer "
                f"than {self.settings.max_prompt_tokens} tokens"
            )

    def problems(self, split: Split) -> Sequence[Problem]:
        """The inner task's problems, without those that are too long."""
        if split not in self._splits:
            found = self.inner.problems(split)
            kept = [p for p in found if self._fits(p.prompt, "")]
            self._splits[split] = kept
            self.dropped[split] = len(found) - len(kept)
        return self._splits[split]

    def demonstrations(self) -> Sequence[Demonstration]:
        """Those of the source, without held-out prompts and those that are too long.

        Raises ConfigError where none is left.
        """
        if self._demonstrations is None:
            found = self._source.demonstrations()
            held_out: set[str] = set()
            if self._source is not self.inner:
                for split in get_args(Split):
                    if split != "train":
                        held_out |= {p.prompt for p in self.inner.problems(split)}
            kept = [
                d for d in found if d.prompt not in held_out and self._fits(d.prompt, d.solution)
            ]
            self.dropped["demonstrations"] = len(found) - len(kept)
            if not kept:
                raise ConfigError(
                    f"task.max_solution_tokens: all {len(found)} demonstrations are held out or "
                    f"longer than {self.settings.max_prompt_tokens or 'any'} tokens of prompt and "
                    f"{self.settings.max_solution_tokens or 'any'} of solution"
                )
            if isinstance(self.inner, Interactive) and self._source is not self.inner:
                kept = [_told_apart(d, self.inner) for d in kept]
            self._demonstrations = kept
        return self._demonstrations

    def _fits(self, prompt: str, solution: str) -> bool:
        if self._encode is None:
            return True
        encode_prompt, encode_completion = self._encode
        most, longest = self.settings.max_prompt_tokens, self.settings.max_solution_tokens
        if most and len(encode_prompt(prompt)) > most:
            return False
        return not (solution and longest and len(encode_completion(solution)) > longest)

    def score(self, completion: str, problem: Problem) -> Score:
        """What all rewards say; the task's own where the settings name none."""
        if not self._rewards:
            return Score(
                self.inner.reward(completion, problem), self.inner.extract(completion) or ""
            )
        return combine(self._rewards, completion, problem)

    def reward(self, completion: str, problem: Problem) -> float:
        """The weighted mean of the rewards."""
        return self.score(completion, problem).reward

    def extract(self, completion: str) -> str | None:
        """The answer the task itself finds; `score` says what the rewards found."""
        return self.inner.extract(completion)


def _told_apart(demonstration: Demonstration, task: Interactive) -> Demonstration:
    """A demonstration from elsewhere, with what the task's environment would have written of it."""
    found = spans(task.environment(demonstration.prompt), demonstration.solution)
    return replace(demonstration, spans=tuple(found)) if len(found) > 1 else demonstration


def environments(task: Task | None, prompts: Sequence[str]) -> list[Environment] | None:
    """The environment of each prompt's completion; None: there is no task, or it has none."""
    inner: object = task.inner if isinstance(task, PreparedTask) else task
    if not isinstance(inner, Interactive):
        return None
    return [inner.environment(prompt) for prompt in prompts]


def score(task: Task, completion: str, problem: Problem) -> Score:
    """What a task's rewards say of a completion, part by part where it has parts."""
    if isinstance(task, PreparedTask):
        return task.score(completion, problem)
    return Score(task.reward(completion, problem), task.extract(completion) or "")
