"""Sets of problems to evaluate on: a run's splits, files, reasoning-gym tasks, the paper's sets.

validation, hard          splits of the run's task
problems.jsonl            .jsonl, .parquet or .csv; columns as given
gym:knights_knaves        any reasoning-gym task
math500, minerva, …       see NAMED; from the hub, or from a file in the folder of data
lm-eval:NAME              a task of lm-evaluation-harness; see harness.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.config import ConfigError, GymTaskConfig, RewardConfig, TaskSettings
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
) -> EvaluationSet:
    """The set of a name or file.

    task, settings: the run's, where there is a run; its splits can be named, and its rewards score
    files where `reward` is 'task'. columns: {'prompt': …, 'answer': …} of files. suffix: put
    behind each prompt; None: `BOXED` for named sets, else nothing. Raises ConfigError, saying what
    to do where a set cannot be had.
    """
    if name in ("validation", "hard"):
        if task is None:
            raise ConfigError(f"--sets {name}: is a split of a run's task; a model has none")
        problems = list(task.problems("validation" if name == "validation" else "hard"))[:limit]
        if not problems:
            raise ConfigError(f"--sets {name}: the run's task has no problems in that split")
        own = task
        return EvaluationSet(name, problems, lambda text, problem: score(own, text, problem))
    if name.startswith("gym:"):
        config = GymTaskConfig(
            gym_name=name.removeprefix("gym:"), gym_train=1, gym_validation=limit or 100,
            gym_seed=1, prompt_suffix=suffix or "",
        )  # fmt: skip
        made = make_task(config)
        return EvaluationSet(
            name, made.problems("validation"), lambda text, problem: score(made, text, problem)
        )
    if name in NAMED:
        source = NAMED[name]
        rows = _named_rows(name, source, folder)
        problems = _problems(name, rows, source.prompt, source.answer, BOXED, suffix, limit)
        return EvaluationSet(name, problems, _scorer(task, settings, "math"))
    if Path(name).suffix.lower() not in FILES:
        known = ", ".join(NAMED)
        raise ConfigError(
            f"--sets {name}: no such set; there are validation, hard, {known}, gym:NAME, "
            "lm-eval:NAME and files"
        )
    rows = list(read_table(name, "train"))
    problems = _problems(name, rows, columns["prompt"], columns["answer"], "", suffix, limit)
    return EvaluationSet(Path(name).name, problems, _scorer(task, settings, reward))


def _scorer(
    task: Task | None, settings: TaskSettings | None, kind: str
) -> Callable[[str, Problem], Score]:
    if kind == "task":
        if task is None:
            raise ConfigError("--reward task: a model has no task; use math, exact or choice")
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


def _named_rows(name: str, source: Source, folder: Path) -> list[dict[str, Any]]:
    for suffix in FILES:
        path = folder / f"{name}{suffix}"
        if path.is_file():
            return list(read_table(str(path), "train"))
    try:
        return list(read_table(source.hub_id, source.split))
    except ConfigError as error:
        raise ConfigError(
            f"--sets {name}: {source.title} ({source.hub_id}, split {source.split}) cannot be had "
            f"from the hub; place its rows as {folder / name}.jsonl with the columns "
            f"{source.prompt} and {source.answer} ({error})"
        ) from None


def _problems(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    prompt: str,
    answer: str,
    default_suffix: str,
    suffix: str | None,
    limit: int | None,
) -> list[Problem]:
    if not rows:
        raise ConfigError(f"--sets {name}: holds no rows")
    problems = []
    for number, row in enumerate(rows[:limit], start=1):
        for column in (prompt, answer):
            if row.get(column) in (None, "", []):
                raise ConfigError(
                    f"--sets {name}: row {number} has nothing in column {column!r} "
                    f"(columns: {', '.join(row)}); name them with --columns prompt=… answer=…"
                )
        said = row[answer]
        text = ", ".join(map(str, said)) if isinstance(said, list) else str(said)
        behind = default_suffix if suffix is None else suffix
        problems.append(Problem(f"{number}", f"{row[prompt]}{behind}", text.strip()))
    return problems
