"""What a Session can be asked about its data: as the model sees it, how long, what it gives away.

Like all looks these change nothing in the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import pandas as pd

from workbench.config import ConfigError
from workbench.tasks import PreparedTask, Problem, Score, score
from workbench.tasks.overlap import overlaps
from workbench.tasks.problem import Split
from workbench.worker import SessionError, Worker

MOST = 2000
"""Rows of each split that `data` holds: the first ones."""


@dataclass(frozen=True)
class Seen:
    """A text as the model sees it: what each token adds, chat template included."""

    prompt_ids: list[int]
    prompt: list[str]
    solution_ids: list[int]
    """Of a demonstration, the end token last; else empty."""
    solution: list[str]


class Inspecting:
    """The looks of a Session into its data; they share its worker."""

    _worker: Worker

    @cached_property
    def _data(self) -> pd.DataFrame:
        engine = self._worker.engine

        def look() -> pd.DataFrame:
            rows: list[dict[str, object]] = []
            for split in get_args(Split):
                for p in engine.task.problems(split)[:MOST]:
                    rows.append(_row(split, p.id, p.prompt, "", p.answer, 0))
            try:
                shown = engine.task.demonstrations()[:MOST]
            except ConfigError:  # a task without any
                shown = []
            for d in shown:
                length = len(engine.policy.encode_completion(d.solution))
                rows.append(_row("demonstrations", d.id, d.prompt, d.solution, d.answer, length))
            frame = pd.DataFrame(rows)
            lengths = [len(engine.policy.encode_prompt(str(text))) for text in frame["prompt"]]
            return frame.assign(prompt_tokens=lengths)

        return self._worker.post("data", "look", look)

    def data(self) -> pd.DataFrame:
        """Prompts and demonstrations: split, id, prompt, solution, answer and lengths in tokens.

        split is train, validation, hard or demonstrations, at most the first 2,000 of each.
        """
        return self._data

    def dropped(self) -> dict[str, int]:
        """How many of each split were left out for their length or because they are held out."""
        task = self._worker.engine.task
        return dict(task.dropped) if isinstance(task, PreparedTask) else {}

    def seen(self, prompt: str, solution: str = "") -> Seen:
        """The tokens of a prompt, and of a solution behind it, as the model sees them."""
        policy = self._worker.engine.policy

        def look() -> Seen:
            asked = policy.encode_prompt(prompt)
            told = policy.encode_completion(solution) if solution else []
            pieces = policy.pieces([*asked, *told])
            return Seen(asked, pieces[: len(asked)], told, pieces[len(asked) :])

        return self._worker.post("seen", "look", look)

    def score(self, completion: str, prompt: str, answer: str | None = None) -> Score:
        """What the run's reward says of a completion, part by part.

        answer: the right one; None: that of the task's prompt of these words. Raises SessionError
        where there is no such prompt.
        """
        engine = self._worker.engine

        def look() -> Score:
            if answer is not None:
                return score(engine.task, completion, Problem("typed", prompt, answer))
            for split in get_args(Split):
                for problem in engine.task.problems(split):
                    if problem.prompt == prompt:
                        return score(engine.task, completion, problem)
            raise SessionError("score: that is no prompt of the task; give the right answer too")

        return self._worker.post("score", "look", look)

    def overlaps(
        self, n: int = 8, least: float = 0.5, of: Literal["prompt", "solution"] = "prompt"
    ) -> pd.DataFrame:
        """Prompts to evaluate on that training prompts or demonstrations give away.

        held_out and train (ids), split, kind ('exact' or 'n-gram'), share of n-grams in common,
        and both texts; the largest share first. of: compare with demonstrations' prompts or
        solutions. See tasks/overlap.py. Raises SessionError where n is below 1.
        """
        if n < 1:
            raise SessionError(f"overlaps: n must be at least 1 (got {n})")
        data = self.data()
        held = data[data["split"].isin(["validation", "hard"])]
        train = data[data["split"].isin(["train", "demonstrations"])]
        texts = train[of].where(train["split"] == "demonstrations", train["prompt"])
        train_texts = dict(zip(train["id"], texts, strict=True))
        held_texts = dict(zip(held["id"], held["prompt"], strict=True))
        splits = dict(zip(held["id"], held["split"], strict=True))
        rows = [
            (o.held_out, splits[o.held_out], o.train, o.kind, o.share, held_texts[o.held_out],
             train_texts[o.train])
            for o in overlaps(train_texts, held_texts, n, least)
        ]  # fmt: skip
        names = ["held_out", "split", "train", "kind", "share", "held_out_text", "train_text"]
        return pd.DataFrame(rows, columns=names)


def _row(
    split: str, name: str, prompt: str, solution: str, answer: str, length: int
) -> dict[str, object]:
    return {
        "split": split,
        "id": name,
        "prompt": prompt,
        "solution": solution,
        "answer": answer,
        "solution_tokens": length,
    }
