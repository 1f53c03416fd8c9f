"""Others that write in a completion: what answers the policy while it writes, turn by turn.

A policy writes until an `Environment` has something to say to its turn; that is put behind it, and
the policy goes on with a new turn. A task with such an environment extends `Interactive`; every
rollout of it, whoever draws it, goes through the environment (`tasks.environments`). What it says
must be a function of the prompt and of what the policy wrote: equal noise then gives equal texts.

Its tokens are the task's, not the policy's: no method learns them, and their log-prob is 0 under
every policy, as they were sure to come. [ours]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

POLICY = "policy"
"""The writer of a token that the policy sampled itself."""
ENVIRONMENT = "environment"
"""The writer of a token that the task's environment put in."""


@dataclass(frozen=True)
class Reply:
    """What is put behind a turn of the policy; an empty text ends the turn and adds nothing."""

    text: str
    writer: str = ENVIRONMENT


class Environment(Protocol):
    """Answers the completion of one prompt."""

    @property
    def ends(self) -> str:
        """Characters one of which ends whatever is answered; others need not be looked at."""
        ...

    def reply(self, turns: Sequence[str]) -> Reply | None:
        """The answer to the last of the policy's turns, still being written; None: none yet."""
        ...


class Interactive(ABC):
    """A task whose completions an environment takes part in."""

    @abstractmethod
    def environment(self, prompt: str) -> Environment:
        """The environment of a prompt, also of one that is no problem of the task."""


class Span(NamedTuple):
    """A piece of a completion, by one writer."""

    writer: str
    text: str


def spans(environment: Environment, text: str) -> list[Span]:
    """Who wrote what of a completion; joined, the spans are the text.

    Where the text does not go on as the environment would have, the policy is taken to have
    written it.
    """
    found: list[Span] = []
    turns = [""]
    start = at = 0
    while at < len(text):
        at += 1
        if text[at - 1] not in environment.ends:
            continue
        turns[-1] = text[start:at]
        reply = environment.reply(turns)
        said = text[at : at + len(reply.text)] if reply else ""
        # at the text's end the answer may be cut off by the length limit
        if reply is None or not said or not reply.text.startswith(said):
            continue
        found += [Span(POLICY, turns[-1]), Span(reply.writer, said)]
        turns.append("")
        start = at = at + len(said)
    return [*found, Span(POLICY, text[start:])] if start < len(text) else found


@dataclass(frozen=True)
class _Continued:
    environment: Environment
    before: tuple[str, ...]

    @property
    def ends(self) -> str:
        return self.environment.ends

    def reply(self, turns: Sequence[str]) -> Reply | None:
        first, *others = turns
        return self.environment.reply([*self.before[:-1], self.before[-1] + first, *others])


def others(writers: Sequence[str]) -> list[str]:
    """Who wrote each token, as records keep it: none where the policy wrote all."""
    return list(writers) if set(writers) - {POLICY} else []


def continued(environment: Environment, text: str) -> Environment:
    """The environment of a completion that begins with `text`, for what is written behind it."""
    turns = [""]
    for writer, part in spans(environment, text):
        if writer == POLICY:
            turns[-1] += part
        else:
            turns.append("")
    return _Continued(environment, tuple(turns))


@dataclass(frozen=True)
class Together:
    """Several environments of one completion; the first that has an answer gives it."""

    environments: Sequence[Environment]

    @property
    def ends(self) -> str:
        """All their ends."""
        return "".join(environment.ends for environment in self.environments)

    def reply(self, turns: Sequence[str]) -> Reply | None:
        """The first answer there is."""
        for environment in self.environments:
            if (reply := environment.reply(turns)) is not None:
                return reply
        return None
