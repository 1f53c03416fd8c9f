"""Chained integer arithmetic: the task of the pocket model.

A prompt is a chain of two-operand sums, a demonstration works it out one step a line and ends with
the answer behind a `#`:

    12+7-30=?           prompt
    12+7=19             worked solution
    19-30=-11
    #-11                final answer

Splits `train` and `validation` have 3 to 5 terms, `hard` (out of distribution) has 6 and 7. All of
it is generated from a seed; nothing is read from disk. [ours]
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from workbench.config import ArithmeticTaskConfig
from workbench.tasks.problem import Demonstration, Problem, Split

LOW, HIGH = -99, 199  # every running total of a chain stays in this range
OPERAND_MAX = 49

_ANSWER = re.compile(r"#\s*(-?\d+)\s*$")


def draw_chain(rng: random.Random, n_terms: int) -> list[int]:
    """Signed terms of one chain, e.g. [12, 7, -30]; every running total lies in [LOW, HIGH]."""
    terms = [rng.randint(1, OPERAND_MAX)]
    total = terms[0]
    while len(terms) < n_terms:
        term = rng.choice((-1, 1)) * rng.randint(1, OPERAND_MAX)
        if LOW <= total + term <= HIGH:
            terms.append(term)
            total += term
    return terms


def write_prompt(terms: Sequence[int]) -> str:
    """[12, 7, -30] → '12+7-30=?'."""
    return str(terms[0]) + "".join(f"{t:+d}" for t in terms[1:]) + "=?"


def write_steps(terms: Sequence[int]) -> list[str]:
    """[12, 7, -30] → ['12+7=19', '19-30=-11']."""
    steps, total = [], terms[0]
    for term in terms[1:]:
        steps.append(f"{total}{term:+d}={total + term}")
        total += term
    return steps


def write_solution(steps: Sequence[str], answer: int) -> str:
    """The steps one a line, then the final answer behind a '#'."""
    return "\n".join([*steps, f"#{answer}"])


def extract_answer(completion: str) -> str | None:
    """The integer behind the last '#', if the completion ends with it; otherwise None."""
    match = _ANSWER.search(completion)
    return str(int(match.group(1))) if match else None


def _wrong_step(terms: list[int], rng: random.Random) -> str:
    """One step's result is off; the steps after it go on from the wrong total."""
    at = rng.randrange(1, len(terms))
    off = rng.choice((-10, -3, -2, -1, 1, 2, 3, 10))
    steps, total = [], terms[0]
    for i, term in enumerate(terms[1:], start=1):
        result = total + term + (off if i == at else 0)
        steps.append(f"{total}{term:+d}={result}")
        total = result
    return write_solution(steps, total)


def _wrong_answer(terms: list[int], rng: random.Random) -> str:
    """Right working, wrong final answer."""
    return write_solution(write_steps(terms), sum(terms) + rng.choice((-10, -2, -1, 1, 2, 10)))


def _detour(terms: list[int], rng: random.Random) -> str:
    """Right answer, but one running total is moved up and back down again on the way."""
    steps = write_steps(terms)
    at = rng.randrange(1, len(terms))
    total, by = sum(terms[: at + 1]), rng.randint(1, 20)
    steps[at:at] = [f"{total}+{by}={total + by}", f"{total + by}-{by}={total}"]
    return write_solution(steps, sum(terms))


def _other_task(terms: list[int], rng: random.Random) -> str:
    """A clean solution, of another problem."""
    other = draw_chain(rng, len(terms))
    while sum(other) == sum(terms):
        other = draw_chain(rng, len(terms))
    return write_solution(write_steps(other), sum(other))


FLAWS = {
    "wrong_step": _wrong_step,
    "wrong_answer": _wrong_answer,
    "detour": _detour,
    "other_task": _other_task,
}


class ArithmeticTask:
    """Prompts, demonstrations and exact-match reward of chained arithmetic."""

    def __init__(self, config: ArithmeticTaskConfig) -> None:
        self.config = config

    @cached_property
    def _splits(self) -> dict[str, list[Problem]]:
        c = self.config
        seen: set[str] = set()  # a prompt occurs in one split only

        def draw(split: str, count: int, terms_range: Sequence[int]) -> list[Problem]:
            rng = random.Random(f"arithmetic/{c.task_seed}/{split}")
            problems: list[Problem] = []
            while len(problems) < count:
                terms = draw_chain(rng, rng.choice(terms_range))
                prompt = write_prompt(terms)
                if prompt not in seen:
                    seen.add(prompt)
                    name = f"{split}-{len(problems):04d}"
                    problems.append(Problem(name, prompt, str(sum(terms))))
            return problems

        return {
            "validation": draw("validation", c.n_validation, c.terms),
            "hard": draw("hard", c.n_hard, c.hard_terms),
            "train": draw("train", c.n_prompts, c.terms),
        }

    def problems(self, split: Split) -> Sequence[Problem]:
        """The problems of a split; no prompt occurs in two splits."""
        return self._splits[split]

    @cached_property
    def _demonstrations(self) -> list[Demonstration]:
        c = self.config
        held_out = {p.prompt for p in (*self._splits["validation"], *self._splits["hard"])}
        rng = random.Random(f"arithmetic/{c.task_seed}/demonstrations")
        tags: list[str] = [
            flaw
            for flaw, share in c.flaws.items()
            for _ in range(round(share * c.n_demonstrations))
        ]
        tags += ["clean"] * (c.n_demonstrations - len(tags))
        rng.shuffle(tags)
        demos: list[Demonstration] = []
        for tag in tags:
            terms = draw_chain(rng, rng.choice(c.terms))
            while write_prompt(terms) in held_out:
                terms = draw_chain(rng, rng.choice(c.terms))
            solution = (
                write_solution(write_steps(terms), sum(terms))
                if tag == "clean"
                else FLAWS[tag](terms, rng)
            )
            name = f"demo-{len(demos):04d}"
            demos.append(Demonstration(name, write_prompt(terms), solution, str(sum(terms)), tag))
        clean = [i for i, d in enumerate(demos) if d.quality == "clean"]
        restyled = random.Random(f"arithmetic/{c.task_seed}/unfamiliar")
        for i in restyled.sample(clean, round(c.unfamiliar_share * len(clean))):
            demos[i] = replace(demos[i], solution=demos[i].solution.replace("=", " = "))
        return demos

    def demonstrations(self) -> Sequence[Demonstration]:
        """Worked solutions; the share of each flaw is `config.flaws`."""
        return self._demonstrations

    def extract(self, completion: str) -> str | None:
        """The final answer behind the last '#'."""
        return extract_answer(completion)

    def reward(self, completion: str, problem: Problem) -> float:
        """1.0 where the final answer equals the problem's, else 0.0."""
        return float(extract_answer(completion) == problem.answer)
