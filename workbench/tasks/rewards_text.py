"""Rewards that read the completion's text: exact answers, choices, patterns, functions of yours."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable

from workbench.config import ConfigError
from workbench.tasks.problem import Problem
from workbench.tasks.scoring import Part, Reward


def exact(extract: Callable[[str], str | None], pattern: str) -> Reward:
    """1.0 where the answer found is the right one letter by letter, spaces around it aside.

    It is the first group of the last match of `pattern`, or what `extract` finds without one.
    """
    compiled = re.compile(pattern) if pattern else None

    def reward(completion: str, problem: Problem) -> Part:
        if compiled is None:
            found = extract(completion)
        else:
            matches = list(compiled.finditer(completion))
            found = matches[-1].group(1) if matches else None
        said = (found or "").strip()
        return Part(float(bool(said) and said == problem.answer.strip()), said)

    return reward


def choice(letters: str) -> Reward:
    """1.0 where the letter chosen is the answer's; see `chosen_letter`."""

    def reward(completion: str, problem: Problem) -> Part:
        found = chosen_letter(completion, letters)
        right = chosen_letter(problem.answer, letters)
        if right is None:
            raise ValueError(f"the answer {problem.answer!r} is none of the letters {letters}")
        return Part(float(found == right), found or "")

    return reward


def chosen_letter(text: str, letters: str) -> str | None:
    r"""The choice a text ends up with: 'so the answer is (C).' → 'C'; None where there is none.

    In this order: the last \boxed{C}; the last 'answer is C', 'answer: (C)' or <answer>C</answer>;
    the last line that is nothing but a letter, e.g. '(C)' or '**C.**'.
    """
    one = rf"\(?\**\(?([{letters}])\b\)?"
    for pattern in (
        rf"\\boxed\{{\s*(?:\\text(?:bf)?\{{)?\s*\(?([{letters}])\)?\s*\}}",
        rf"(?i:answer)\**\s*(?:(?i:is|choice|option)|[:=>])[:\s*]*{one}",
        rf"(?m)^[\s*]*\(?([{letters}])[).]?[\s*.]*$",
    ):
        if found := re.findall(pattern, text):
            return found[-1]
    return None


def pattern_found(pattern: str) -> Reward:
    """1.0 where the regular expression is found anywhere in the completion: a format reward."""
    compiled = re.compile(pattern)
    return lambda completion, problem: Part(float(compiled.search(completion) is not None))


def user_function(name: str) -> Reward:
    """A function of the user's, 'module:name', called with (completion, problem).

    Raises ConfigError where there is no such function.
    """
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"rewards.function: cannot import {name!r}: {error}") from None
    if not callable(function):
        raise ConfigError(f"rewards.function: {name!r} is no function")
    return lambda completion, problem: Part(float(function(completion, problem)))
