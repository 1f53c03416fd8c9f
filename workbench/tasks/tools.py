"""Sums of unknown numbers, with a table and a calculator as tools: a task in several turns.

A prompt is a chain of entries of a table, `?3` for entry 3. Their values are not in it: each prompt
has a table of its own, which only the environment knows. A line up to its `=` is a call, where it
begins with `?`, a digit or a sign; the environment puts the result behind the `=` and ends the
line. The answer stands behind a `#`:

    ?3+?7-?4=?      prompt
    ?3=12           `?3=` by the policy, `12` by the environment
    ?7=17
    12+17=29        `12+17=` by the policy
    ?4=6
    29-6=23
    #23             final answer

The table has the entries 0 to 9. The calculator takes whole numbers of at most 9 digits with
+ - * / in the usual order, no result above 10¹², whole quotients only. A call that cannot be
carried out gives `error: …`. Of a completion's calls the first `tools_calls` are answered, those
after them are left as they stand. The policy may write anything, also an answer without a call;
nothing that it writes is ever run as code.

Splits `train` and `validation` have 3 or 4 entries, `hard` (out of distribution) 5 or 6. All of it
is generated from a seed: the values are a function of (seed, prompt). [ours; the demonstrations'
list of actions is what ActGuide, arXiv 2605.12004, guides by]
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from workbench.config import ToolsTaskConfig
from workbench.tasks.arithmetic import extract_answer
from workbench.tasks.environment import POLICY, Environment, Interactive, Reply, Span
from workbench.tasks.problem import Demonstration, Problem, Split

N_ENTRIES = 10
VALUES = (1, 49)
"""Lowest and highest value of an entry."""
LONGEST_EXPRESSION = 64
"""Characters of an expression that is worked out."""
LARGEST = 10**12
"""No number of a calculation may be larger, in absolute value."""

_CALL = re.compile(r"^[ \t]*([?0-9+*/-][^=\n]*)=", re.MULTILINE)
_PART = re.compile(r"[ \t]*([0-9]{1,9}(?![0-9])|[-+*/])")

Chain = Sequence[tuple[int, int]]
"""What is asked: (sign, entry) of each term, the first with sign 1."""


class ToolError(ValueError):
    """A call that cannot be carried out; the message is what the policy is told."""


def calculate(expression: str) -> int:
    """The value of whole numbers joined by + - * /, e.g. '3*7+2*12' → 45. Raises ToolError."""
    parts = _parts(expression)
    total, sign, at = 0, 1, 0
    while True:
        value, at = _factor(parts, at)
        while at < len(parts) and parts[at] in ("*", "/"):
            operator = parts[at]
            factor, at = _factor(parts, at + 1)
            value = _bounded(value * factor if operator == "*" else _divide(value, factor))
        total = _bounded(total + sign * value)
        if at == len(parts):
            return total
        if parts[at] not in ("+", "-"):
            raise ToolError("no sum")
        sign, at = (1 if parts[at] == "+" else -1), at + 1


def _parts(expression: str) -> list[str]:
    if len(expression) > LONGEST_EXPRESSION:
        raise ToolError("too long")
    text, parts, at = expression.rstrip(" \t"), [], 0
    while at < len(text):
        found = _PART.match(text, at)
        if found is None:
            raise ToolError("no sum")
        parts.append(found.group(1))
        at = found.end()
    return parts


def _factor(parts: Sequence[str], at: int) -> tuple[int, int]:
    """(value, place behind it) of a number, which may have a minus before it."""
    sign = 1
    if at < len(parts) and parts[at] == "-":
        sign, at = -1, at + 1
    if at == len(parts) or not parts[at].isdigit():
        raise ToolError("no sum")
    return sign * int(parts[at]), at + 1


def _divide(value: int, by: int) -> int:
    if by == 0:
        raise ToolError("division by 0")
    if value % by:
        raise ToolError("not whole")
    return value // by


def _bounded(value: int) -> int:
    if abs(value) > LARGEST:
        raise ToolError("too large")
    return value


@dataclass(frozen=True)
class Toolbox:
    """The tools of one prompt: its environment."""

    table: Mapping[str, int]
    calls: int
    """How many calls of a completion are answered."""
    ends: str = "="

    def reply(self, turns: Sequence[str]) -> Reply | None:
        """The result of the call that the last turn makes."""
        call = _CALL.search(turns[-1])
        if call is None or sum(bool(_CALL.search(t)) for t in turns[:-1]) >= self.calls:
            return None
        try:
            return Reply(f"{self.use(call.group(1).strip())}\n")
        except ToolError as error:
            return Reply(f"error: {error}\n")

    def use(self, call: str) -> int:
        """Carry out a call, '?3' or '12+17'. Raises ToolError."""
        if not call.startswith("?"):
            return calculate(call)
        if call[1:] not in self.table:
            raise ToolError("no such entry")
        return self.table[call[1:]]


def draw_chain(rng: random.Random, n_terms: int) -> Chain:
    """Different entries, each with a sign."""
    entries = rng.sample(range(N_ENTRIES), n_terms)
    return [(1 if i == 0 else rng.choice((-1, 1)), entry) for i, entry in enumerate(entries)]


def write_chain(chain: Chain) -> str:
    """[(1, 3), (1, 7), (-1, 4)] → '?3+?7-?4'."""
    return "".join(("+" if sign > 0 else "-") + f"?{entry}" for sign, entry in chain)[1:]


def work_out(tools: Toolbox, chain: Chain) -> list[Span]:
    """The worked solution: look an entry up, work out the total so far, and so on."""
    actions, total = [], 0
    for i, (sign, entry) in enumerate(chain):
        value = tools.table[str(entry)]
        actions.append(f"?{entry}=")
        if i > 0:
            actions.append(f"{total}{'+' if sign > 0 else '-'}{value}=")
        total += sign * value
    found: list[Span] = []
    for action in actions:
        reply = tools.reply([action])
        assert reply is not None
        found += [Span(POLICY, action), Span(reply.writer, reply.text)]
    return [*found, Span(POLICY, f"#{total}")]


def _total(tools: Toolbox, chain: Chain) -> int:
    return sum(sign * tools.table[str(entry)] for sign, entry in chain)


class ToolsTask(Interactive):
    """Prompts, tools, demonstrations and exact-match reward."""

    def __init__(self, config: ToolsTaskConfig) -> None:
        self.config = config

    def environment(self, prompt: str) -> Environment:
        """The tools of a prompt; any text has a table of its own."""
        return self._tools(prompt)

    def _tools(self, prompt: str) -> Toolbox:
        rng = random.Random(f"tools/{self.config.tools_seed}/table/{prompt}")
        table = {str(entry): rng.randint(*VALUES) for entry in range(N_ENTRIES)}
        return Toolbox(table, self.config.tools_calls)

    def _write(self, chain: Chain) -> str:
        return f"{write_chain(chain)}=?{self.config.tools_suffix}"

    @cached_property
    def _splits(self) -> dict[str, list[Problem]]:
        c = self.config
        seen: set[str] = set()  # a prompt occurs in one split only

        def draw(split: str, count: int, sizes: Sequence[int]) -> list[Problem]:
            rng = random.Random(f"tools/{c.tools_seed}/{split}")
            problems: list[Problem] = []
            while len(problems) < count:
                chain = draw_chain(rng, rng.choice(sizes))
                prompt = self._write(chain)
                if prompt not in seen:
                    seen.add(prompt)
                    name = f"{split}-{len(problems):04d}"
                    problems.append(Problem(name, prompt, str(_total(self._tools(prompt), chain))))
            return problems

        return {
            "validation": draw("validation", c.tools_validation, c.tools_terms),
            "hard": draw("hard", c.tools_hard, c.tools_hard_terms),
            "train": draw("train", c.tools_prompts, c.tools_terms),
        }

    def problems(self, split: Split) -> Sequence[Problem]:
        """The problems of a split; no prompt occurs in two splits."""
        return self._splits[split]

    @cached_property
    def _demonstrations(self) -> list[Demonstration]:
        c = self.config
        held_out = {p.prompt for p in (*self._splits["validation"], *self._splits["hard"])}
        rng = random.Random(f"tools/{c.tools_seed}/demonstrations")
        demos: list[Demonstration] = []
        while len(demos) < c.tools_demonstrations:
            chain = draw_chain(rng, rng.choice(c.tools_terms))
            prompt = self._write(chain)
            if prompt in held_out:
                continue
            tools = self._tools(prompt)
            written = work_out(tools, chain)
            solution = "".join(span.text for span in written)
            name, answer = f"demo-{len(demos):04d}", str(_total(tools, chain))
            demos.append(Demonstration(name, prompt, solution, answer, "clean", tuple(written)))
        return demos

    def demonstrations(self) -> Sequence[Demonstration]:
        """Worked solutions, all of them right."""
        return self._demonstrations

    def extract(self, completion: str) -> str | None:
        """The final answer behind the last '#'."""
        return extract_answer(completion)

    def reward(self, completion: str, problem: Problem) -> float:
        """1.0 where the final answer equals the problem's, else 0.0."""
        return float(extract_answer(completion) == problem.answer)
