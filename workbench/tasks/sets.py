"""Sets of problems to evaluate on: a run's splits, files, reasoning-gym tasks, the paper's sets.

validation, hard          splits of the run's task
problems.jsonl            .jsonl, .parquet or .csv; columns as given
gym:knights_knaves        any reasoning-gym task
math500, minerva, …       see NAMED; from the hub, or from a file in the folder of data
lm-eval:NAME              a task of lm-evaluation-harness; see harness.py
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.config import (
    ConfigError,
    DatasetTaskConfig,
    GymTaskConfig,
    RewardConfig,
    RunConfig,
    TaskSettings,
)
from workbench.config.sections import EvaluationSetConfig
from workbench.tasks import Problem, Score, Task, make_task, score
from workbench.tasks.dataset import read_table
from workbench.tasks.prepared import make_reward
from workbench.tasks.scoring import NamedReward, combine

BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."
FILES = (".jsonl", ".parquet", ".csv", ".json")


@dataclass(frozen=True)
class Source:
    """Where a named set comes from."""

    title: str
    hub_id: str
    """'id' or 'id:configuration'."""
    split: str
    prompt: str
    """Column with the problem."""
    answer: str
    """Column with the answer, a text or a list of them."""


NAMED: dict[str, Source] = {
    "math500": Source("MATH-500", "HuggingFaceH4/MATH-500", "test", "problem", "answer"),
    "minerva": Source("Minerva Math", "math-ai/minervamath", "test", "question", "answer"),
    "olympiadbench": Source(
        "OlympiadBench (text, English mathematics)",
        "Hothan/OlympiadBench:OE_TO_maths_en_COMP",
        "train",
        "question",
        "final_answer",
    ),
    "aime24": Source("AIME 2024", "HuggingFaceH4/aime_2024", "train", "problem", "answer"),
    "amc23": Source("AMC 2023", "math-ai/amc23", "test", "question", "answer"),
}
"""The sets of the paper's table [paper: the sets; infer: these copies of them]."""


@dataclass(frozen=True)
class EvaluationSet:
    """Problems and what scores their completions."""

    name: str
    problems: Sequence[Problem]
    score: Callable[[str, Problem], Score]
    task: Task | None = None
    """Whose environment takes part in its completions, if it has one; None: nobody does."""


RIGHT = 1.0 - 1e-9
"""A completion counts as right from this reward on: partial credit is none. [ours]"""


@dataclass(frozen=True)
class Words:
    """What messages call the settings that a set was asked for with."""

    field: str = "--sets"
    columns: str = "--columns prompt=… answer=…"
    reward: str = "--reward"


IN_CONFIG = Words("probes.evaluation_sets", "prompt_column and answer_column", "reward")


@dataclass(frozen=True)
class ScheduledSet:
    """A set that a run evaluates while it trains."""

    config: EvaluationSetConfig
    found: EvaluationSet


def scheduled_sets(config: RunConfig, task: Task) -> tuple[ScheduledSet, ...]:
    """The sets of `[[probes.evaluation_sets]]`, read. Raises ConfigError that names the set."""
    columns = file_columns(config.task)
    return tuple(
        ScheduledSet(
            each,
            load_set(
                each.set,
                task=task,
                settings=config.task,
                columns={
                    "prompt": each.prompt_column or columns["prompt"],
                    "answer": each.answer_column or columns["answer"],
                },
                reward=each.reward,
                suffix=None if each.suffix == "auto" else each.suffix,
                folder=Path(each.folder).expanduser(),
                limit=each.problems,
                words=IN_CONFIG,
            ),
        )
        for each in config.probes.evaluation_sets
    )


def file_columns(settings: TaskSettings | None) -> dict[str, str]:
    """Columns of files that were not named: those of the task's data, where it reads such."""
    if isinstance(settings, DatasetTaskConfig):
        return {"prompt": settings.prompt_column, "answer": settings.answer_column or "answer"}
    return {"prompt": "prompt", "answer": "answer"}


def load_set(
    name: str,
    *,
    task: Task | None,
    settings: TaskSettings | None,
    columns: Mapping[str, str],
    reward: str,
    suffix: str | None,
    folder: Path,
    limit: int | None,
    words: Words = Words(),
) -> EvaluationSet:
    """The set of a name or file.

    task, settings: the run's, where there is a run; its splits can be named, and its rewards score
    files where `reward` is 'task'. columns: {'prompt': …, 'answer': …} of files. suffix: put
    behind each prompt; None: `BOXED` for named sets, else nothing. Raises ConfigError, saying what
    to do where a set cannot be had.
    """
    if name in ("validation", "hard"):
        if task is None:
            raise ConfigError(f"{words.field} {name}: is a split of a run's task; a model has none")
        problems = list(task.problems("validation" if name == "validation" else "hard"))[:limit]
        if not problems:
            raise ConfigError(f"{words.field} {name}: the run's task has no problems in that split")
        own = task
        return EvaluationSet(name, problems, lambda text, problem: score(own, text, problem), own)
    if name.startswith("gym:"):
        config = GymTaskConfig(
            gym_name=name.removeprefix("gym:"), gym_train=1, gym_validation=limit or 100,
            gym_seed=1, prompt_suffix=suffix or "",
        )  # fmt: skip
        try:
            made = make_task(config)
        except ConfigError as error:
            raise ConfigError(f"{words.field} {name}: {_reason(error)}") from None
        return EvaluationSet(
            name, made.problems("validation"), lambda text, problem: score(made, text, problem)
        )
    if name in NAMED:
        source = NAMED[name]
        rows = _named_rows(name, source, folder, words)
        problems = _problems(name, rows, source.prompt, source.answer, BOXED, suffix, limit, words)
        return EvaluationSet(name, problems, _scorer(task, settings, "math", words))
    if Path(name).suffix.lower() not in FILES:
        known = ", ".join(NAMED)
        outside = "lm-eval:NAME, " if words is not IN_CONFIG else ""
        raise ConfigError(
            f"{words.field} {name}: no such set; there are validation, hard, {known}, gym:NAME, "
            f"{outside}.jsonl, .parquet and .csv files"
        )
    try:
        rows = list(read_table(name, "train"))
    except ConfigError as error:
        raise ConfigError(f"{words.field} {name}: {_reason(error)}") from None
    problems = _problems(name, rows, columns["prompt"], columns["answer"], "", suffix, limit, words)
    scorer = _scorer(task, settings, reward, words)
    return EvaluationSet(Path(name).name, problems, scorer, task if reward == "task" else None)


def _scorer(
    task: Task | None, settings: TaskSettings | None, kind: str, words: Words
) -> Callable[[str, Problem], Score]:
    if kind == "task":
        if task is None:
            raise ConfigError(
                f"{words.reward} task: a model has no task; use math, exact or choice"
            )
        own = task
        return lambda text, problem: score(own, text, problem)
    config = RewardConfig.model_validate({"kind": kind})
    reward = NamedReward(kind, 1.0, make_reward(config, task or _NoTask()))
    return lambda text, problem: combine([reward], text, problem)


class _NoTask:
    """Stands for the task where there is none: an answer is the completion's last line."""

    def problems(self, split: str) -> Sequence[Problem]:
        return []

    def demonstrations(self) -> Sequence[Any]:
        return []

    def reward(self, completion: str, problem: Problem) -> float:
        return float(self.extract(completion) == problem.answer)

    def extract(self, completion: str) -> str | None:
        return completion.strip().rpartition("\n")[2].strip() or None


def _named_rows(name: str, source: Source, folder: Path, words: Words) -> list[dict[str, Any]]:
    for suffix in FILES:
        path = folder / f"{name}{suffix}"
        if path.is_file():
            return list(read_table(str(path), "train"))
    try:
        return list(read_table(source.hub_id, source.split))
    except ConfigError as error:
        raise ConfigError(
            f"{words.field} {name}: {source.title} ({source.hub_id}, split {source.split}) cannot "
            f"be had from the hub; place its rows as {folder / name}.jsonl with the columns "
            f"{source.prompt} and {source.answer} ({_reason(error)})"
        ) from None


def _reason(error: ConfigError) -> str:
    """Without the field of a task's section, which is not where this was asked for."""
    return re.sub(r"^task\.\w+: ", "", str(error))


def _problems(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    prompt: str,
    answer: str,
    default_suffix: str,
    suffix: str | None,
    limit: int | None,
    words: Words,
) -> list[Problem]:
    if not rows:
        raise ConfigError(f"{words.field} {name}: holds no rows")
    problems = []
    for number, row in enumerate(rows[:limit], start=1):
        for column in (prompt, answer):
            if row.get(column) in (None, "", []):
                raise ConfigError(
                    f"{words.field} {name}: row {number} has nothing in column {column!r} "
                    f"(columns: {', '.join(row)}); name them with {words.columns}"
                )
        said = row[answer]
        text = ", ".join(map(str, said)) if isinstance(said, list) else str(said)
        behind = default_suffix if suffix is None else suffix
        problems.append(Problem(f"{number}", f"{row[prompt]}{behind}", text.strip()))
    return problems
