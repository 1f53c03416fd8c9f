"""Prompts and demonstrations from the user's own data, read with `datasets`.

    [task]
    kind = "dataset"
    data = "problems.jsonl"        # or .json, .csv, .parquet, a hub id, or 'hub/id:configuration'
    prompt_column = "question"
    solution_column = "reasoning"  # "" where the data has none
    answer_column = "answer"

    messages_column = "messages"   # or a chat a row: the last assistant message is the solution

A row is an RL prompt with its answer; a row with a solution is a demonstration too. Where
solution and answer are the same column, the answer is what `answer_pattern` finds in it (GSM8K is
like that). Validation is split off by a seeded shuffle of the different prompts, so that none
occurs in both splits. [ours]
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.config import ConfigError, DatasetTaskConfig
from workbench.tasks.messages import split_messages
from workbench.tasks.problem import Demonstration, Problem, Split
from workbench.tasks.rewards import same_answer

if TYPE_CHECKING:
    from datasets import Dataset

Rows = Iterable[Mapping[str, Any]]

_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True)
class Row:
    """One row of the data; `number` counts from 1, a CSV's header left out."""

    number: int
    prompt: str
    solution: str
    answer: str


def read_table(data: str, split: str) -> Dataset:
    """A file's rows, or those of one split of a hub dataset.

    Raises ConfigError where there is no such file or dataset, or it cannot be read.
    """
    import datasets
    import pandas as pd

    path = Path(data).expanduser()
    try:
        if path.suffix.lower() in _FORMATS:
            if not path.is_file():
                raise ConfigError(f"task.data: there is no file {data!r}")
            kind = _FORMATS[path.suffix.lower()]
            if kind == "json" and not path.stat().st_size:
                raise ConfigError(f"task.data: {data!r} is empty")
            if kind == "csv":  # as texts: '007' is no number, and 'None' no empty cell
                cells = pd.read_csv(path, dtype=str, keep_default_na=False)
                return datasets.Dataset.from_pandas(cells, preserve_index=False)
            if kind == "json":
                _check_encoding(path)
            return datasets.load_dataset(kind, data_files=str(path), split="train")
        if path.is_file():
            known = ", ".join(_FORMATS)
            raise ConfigError(f"task.data: {data!r} is no file of a kind that is read ({known})")
        name, _, configuration = data.partition(":")
        return datasets.load_dataset(name, configuration or None, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, ConfigError):
            raise
        # datasets says "an error occurred" and hangs the reason on as the cause
        reason = _broken_line(path) or " ".join(str(error.__cause__ or error).split())
        shown = reason if len(reason) <= 200 else reason[:199] + "…"
        raise ConfigError(f"task.data: cannot read {data!r}: {shown}") from None


def _broken_line(path: Path) -> str:
    """The first line of a .jsonl file that is no JSON object; '' where there is none.

    Arrow's messages count rows from 0, and anew in each block of a large file.
    """
    if path.suffix.lower() != ".jsonl" or not path.is_file():
        return ""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                if line.strip() and not isinstance(json.loads(line.strip()), dict):
                    return f"line {number} is no JSON object"
            except json.JSONDecodeError as error:
                return f"line {number}, character {error.colno}: {error.msg}"
            except UnicodeDecodeError:
                return f"line {number} is no UTF-8 text"
    return ""


def _check_encoding(path: Path) -> None:
    """Raise ValueError where a line is no UTF-8: Arrow takes any bytes, and its rows fail later."""
    with path.open(encoding="utf-8") as lines:
        for _ in lines:
            pass


def read_rows(data: str | tuple[dict[str, Any], ...], split: str) -> tuple[list[str], Rows]:
    """(names of the columns, rows) of a table or of rows given as they are. Raises ConfigError."""
    if isinstance(data, str):
        table = read_table(data, split)
        return table.column_names, table
    return list(dict.fromkeys(name for row in data for name in row)), data


class DatasetTask:
    """Prompts, demonstrations and pattern-matched reward of a table."""

    def __init__(self, config: DatasetTaskConfig) -> None:
        """Read and split the data. Raises ConfigError, naming the field or the row."""
        self.config = config
        self._pattern = _compile(config.answer_pattern)
        kinds = {reward.kind for reward in config.rewards}
        self._answerless = bool(kinds) and kinds <= {"pattern", "function"}
        self._reads_itself = not kinds or "task" in kinds
        rows = self._read()
        if config.data_shuffle:
            random.Random(f"dataset/{config.data_seed}/order").shuffle(rows)
        if config.data_limit:
            rows = rows[: config.data_limit]
        prompts = sorted({row.prompt for row in rows})
        random.Random(f"dataset/{config.data_seed}/split").shuffle(prompts)
        n_validation = round(config.validation_share * len(prompts))
        if config.validation_share:
            n_validation = min(max(n_validation, 1), len(prompts) - 1)
        held_out = set(prompts[:n_validation])
        self._problems: dict[Split, list[Problem]] = {"train": [], "validation": [], "hard": []}
        self._demonstrations: list[Demonstration] = []
        for row in rows:
            split: Split = "validation" if row.prompt in held_out else "train"
            problem = Problem(f"row-{row.number}", row.prompt, row.answer)
            self._problems[split].append(problem)
            if row.solution and split == "train":
                self._demonstrations.append(
                    Demonstration(f"demo-{row.number}", row.prompt, row.solution, row.answer)
                )

    def _read(self) -> list[Row]:
        c = self.config
        names, table = read_rows(c.data, c.data_split)
        fields = ["messages_column"] if c.messages_column else ["prompt_column", "solution_column"]
        for field in (*fields, "answer_column"):
            column = getattr(c, field)
            if column in names or (not column and field != "prompt_column"):
                continue
            close = get_close_matches(column, names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"task.{field}: {c.data_name!r} has no column {column!r}{hint} "
                f"(columns: {', '.join(names)})"
            )
        rows = [self._row(number, values) for number, values in enumerate(table, start=1)]
        if len(rows) < 2:
            raise ConfigError(
                f"task.data: {c.data_name!r} has {len(rows)} rows; at least 2 are needed"
            )
        if self._reads_itself:
            self._check_pattern(rows)
        return rows

    def _row(self, number: int, values: Mapping[str, Any]) -> Row:
        c = self.config
        if c.messages_column:
            try:
                prompt, solution = split_messages(values.get(c.messages_column))
            except ValueError as error:
                raise ConfigError(
                    f"task.messages_column: row {number} of {c.data_name!r} {error}"
                ) from None
        else:
            prompt = self._text(number, "prompt_column", values.get(c.prompt_column))
            solution = self._text(number, "solution_column", values.get(c.solution_column))
        answer = self._text(number, "answer_column", values.get(c.answer_column))
        if not prompt.strip():
            raise ConfigError(
                f"task.data: row {number} of {c.data_name!r} has an empty prompt "
                f"(column {c.prompt_column!r})"
            )
        if c.answer_column in ("", c.solution_column):
            answer = self.extract(solution) or ""
        if not answer.strip() and not self._answerless:
            raise ConfigError(
                f"task.data: row {number} of {c.data_name!r} has an empty answer "
                f"(column {c.answer_column or c.solution_column!r})"
            )
        return Row(number, prompt, solution if solution.strip() else "", answer.strip())

    def _text(self, number: int, field: str, value: Any) -> str:
        """A cell as text; numbers are written out, nothing else is guessed."""
        if value is None:
            return ""
        if isinstance(value, (str, int, float)):
            return str(value)
        raise ConfigError(
            f"task.{field}: row {number} of {self.config.data_name!r} holds a "
            f"{type(value).__name__}, not text or a number"
        )

    def _check_pattern(self, rows: Sequence[Row]) -> None:
        """A pattern that never finds the answer in a solution would make every reward 0."""
        solved = [row for row in rows if row.solution]
        if solved and not any(same_answer(self.extract(r.solution), r.answer) for r in solved):
            row, found = solved[0], self.extract(solved[0].solution)
            raise ConfigError(
                f"task.answer_pattern: finds the answer in none of {len(solved)} solutions; "
                f"in row {row.number} it finds {found!r}, the answer is {row.answer!r}"
            )

    def problems(self, split: Split) -> Sequence[Problem]:
        """The rows of a split, shuffled by `data_seed`; there is no `hard` split."""
        return self._problems[split]

    def demonstrations(self) -> Sequence[Demonstration]:
        """The training rows that have a solution. Raises ConfigError where none has."""
        if not self._demonstrations:
            raise ConfigError(
                "task.solution_column: no row of the training split has a solution to learn from; "
                "use method 'grpo', or name the column that holds them"
            )
        return self._demonstrations

    def extract(self, completion: str) -> str | None:
        """The first group of the last match of `answer_pattern`."""
        found = None
        for match in self._pattern.finditer(completion):
            found = match.group(1)
        return found

    def reward(self, completion: str, problem: Problem) -> float:
        """1.0 where the extracted answer is the row's, numbers compared as numbers; else 0.0."""
        return float(same_answer(self.extract(completion), problem.answer))


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"task.answer_pattern: not a regular expression: {error}") from None
    if not compiled.groups:
        raise ConfigError("task.answer_pattern: needs a group (…) around the answer")
    return compiled
