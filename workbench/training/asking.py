"""Who a policy can ask during a rollout: checkers over the task's solution, a function, a URL."""

from __future__ import annotations

import http.client
import importlib
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from workbench.config import ConfigError, TrainingConfig

Kind = Literal["verify", "knowledge", "reasoning"]
KEY = "OPENAI_API_KEY"
"""Environment variable with the endpoint's key, if it wants one."""
LONGEST = 400
"""Characters of an answer that are used."""


@dataclass(frozen=True)
class Query:
    """One question of a policy."""

    kind: Kind
    prompt: str
    solution: str
    """The demonstration's; an endpoint is not shown it."""
    written: str
    """The work so far: what the policy wrote, without queries, and the steps it was given."""


Helper = Callable[[Query], str]
"""Answers a query. Raises NoAnswer where it cannot."""


class NoAnswer(RuntimeError):
    """A helper could not answer; the rollout goes on without."""


def solution_helper(query: Query) -> str:
    """Answers from the worked solution, line by line.

    verify: 'right' if the lines so far are the solution's, else the first that is not; knowledge:
    how many lines the solution has; reasoning: the line that comes next, or the first one again
    that should have come where the text went another way.
    """
    expected = query.solution.splitlines()
    lines = [line.strip() for line in query.written.splitlines() if line.strip()]
    pairs = enumerate(zip(lines, expected, strict=False))
    wrong = next((i for i, (line, right) in pairs if line != right.strip()), None)
    if query.kind == "verify":
        return "right" if wrong is None else f"wrong: {lines[wrong]}"
    if query.kind == "knowledge":
        return f"{len(expected)} lines"
    at = len(lines) if wrong is None else wrong
    return expected[min(at, len(expected) - 1)]


INSTRUCTIONS: dict[Kind, str] = {
    "verify": "Say in one line whether the work so far is right; if not, name the first mistake.",
    "knowledge": "Give in one line a fact or formula that helps. Do not solve the problem.",
    "reasoning": "Give the next step of the solution in one line. Do not go further.",
}


class ChatHelper:
    """An OpenAI-compatible chat endpoint, with time-outs, retries and a budget of calls.

    Its answers are not a function of the step: a run with one is not bit-identical when executed
    again. One object serves one step.
    """

    def __init__(self, config: TrainingConfig, pause: float = 0.5) -> None:
        self.config, self.pause = config, pause
        self.calls = 0

    def __call__(self, query: Query) -> str:
        """Ask. Raises NoAnswer where all tries failed or the step's calls are used up."""
        c = self.config
        failure = "no call was made"
        for trial in range(c.aipo_retries + 1):
            if self.calls >= c.aipo_calls:
                raise NoAnswer(f"the step's {c.aipo_calls} calls are used up (aipo_calls)")
            if trial:
                time.sleep(self.pause * 2 ** (trial - 1))
            self.calls += 1
            try:
                return self._ask(query)
            except (OSError, http.client.HTTPException, ValueError) as error:
                failure = str(error) or type(error).__name__
        raise NoAnswer(f"{c.aipo_url}: {failure}")

    def _ask(self, query: Query) -> str:
        c = self.config
        body = {
            "model": c.aipo_model,
            "temperature": 0.0,
            "max_tokens": LONGEST // 4,
            "messages": [
                {"role": "system", "content": INSTRUCTIONS[query.kind]},
                {
                    "role": "user",
                    "content": f"Problem:\n{query.prompt}\n\nWork so far:\n{query.written}",
                },
            ],
        }
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        request = urllib.request.Request(
            f"{c.aipo_url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers
        )
        with urllib.request.urlopen(request, timeout=c.aipo_timeout) as reply:
            told = json.loads(reply.read())
        try:
            said = told["choices"][0]["message"]["content"]
        except (LookupError, TypeError):
            raise ValueError(f"no chat completion: {str(told)[:LONGEST]}") from None
        if not isinstance(said, str) or not said.strip():
            raise ValueError("an empty answer")
        return said.strip()[:LONGEST]


def make_helper(config: TrainingConfig) -> Helper:
    """The helper of a step. Raises ConfigError where `aipo_helper` names none."""
    if config.aipo_url:
        return ChatHelper(config)
    if not config.aipo_helper:
        return solution_helper
    module, _, name = config.aipo_helper.partition(":")
    try:
        found: Helper = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"aipo_helper: cannot import {config.aipo_helper!r}: {error}") from None
    return found
