"""What a run trains on: one section a kind of task."""

from __future__ import annotations

from math import perm
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from workbench.config.rewards import RewardConfig
from workbench.config.sections import Section

MOST_ROWS = 2000
"""Rows that a config may hold itself."""


class TaskSettings(Section):
    """What all kinds of task have: rewards, the source of demonstrations, limits of length."""

    rewards: tuple[RewardConfig, ...] = ()
    """What scores a completion, by weight; empty: the task's own reward alone."""
    demonstrations_from: dict[str, Any] = {}
    """Another task, e.g. {kind = "dataset", data = "worked.jsonl"}, that gives demonstrations."""
    max_prompt_tokens: int = Field(0, ge=0)
    """Leave out prompts and demonstrations whose prompt is longer (0: none)."""
    max_solution_tokens: int = Field(0, ge=0)
    """Leave out demonstrations whose solution is longer, the end token included (0: none)."""

    @field_validator("rewards")
    @classmethod
    def _told_apart(cls, rewards: tuple[RewardConfig, ...]) -> tuple[RewardConfig, ...]:
        names = [reward.label for reward in rewards]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"rewards: two are called {twice[0]!r}; give one another name")
        if rewards and not any(reward.weight for reward in rewards):
            raise ValueError("rewards: every weight is 0; at least one must be above")
        return rewards

    @field_validator("demonstrations_from")
    @classmethod
    def _a_task(cls, values: dict[str, Any]) -> dict[str, Any]:
        if values:
            try:
                source: TaskSettings = TypeAdapter(TaskConfig).validate_python(values)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"][1:])
                said = first["ctx"]["error"] if first["type"] == "value_error" else first["msg"]
                raise ValueError(f"demonstrations_from.{where or 'kind'}: {said}") from None
            if source.demonstrations_from:
                raise ValueError("demonstrations_from: names a source of its own; say it once")
        return values

    @property
    def plain(self) -> bool:
        """Whether the task gives everything itself, as it comes."""
        limits = self.max_prompt_tokens or self.max_solution_tokens
        return not (self.rewards or self.demonstrations_from or limits)


class ArithmeticTaskConfig(TaskSettings):
    """Chained integer arithmetic, generated from a seed."""

    kind: Literal["arithmetic"] = "arithmetic"
    task_seed: int = 0
    """Seed of the prompts and demonstrations; apart from the run's seed: runs share their data."""
    terms: tuple[int, ...] = (3, 3, 4, 5)
    """Numbers of terms of training and validation prompts, drawn evenly: half have three."""
    hard_terms: tuple[int, ...] = (6, 7)
    """Numbers of terms of the out-of-distribution split."""
    n_prompts: int = Field(512, ge=1)
    """Size of the training split."""
    n_validation: int = Field(128, ge=0)
    """Size of the validation split."""
    n_hard: int = Field(128, ge=0)
    """Size of the out-of-distribution split."""
    n_demonstrations: int = Field(256, ge=1)
    """Number of demonstrations."""
    flaws: dict[Literal["wrong_step", "wrong_answer", "detour", "other_task"], float] = {
        "wrong_step": 0.0625,
        "wrong_answer": 0.0625,
        "detour": 0.0625,
        "other_task": 0.0625,
    }
    """Share of demonstrations with each named flaw; the rest are clean."""
    unfamiliar_share: float = Field(0.0, ge=0, le=1)
    """Share of the clean ones written as `12+7 = 19`: right, in a style the model never saw."""

    @model_validator(mode="after")
    def _check(self) -> ArithmeticTaskConfig:
        if any(share < 0 for share in self.flaws.values()) or sum(self.flaws.values()) > 1:
            raise ValueError("flaws: shares must be at least 0 and sum to at most 1")
        for name in ("terms", "hard_terms"):
            if not getattr(self, name) or min(getattr(self, name)) < 2:
                raise ValueError(f"{name}: needs at least one number, each at least 2")
        return self


class GymTaskConfig(TaskSettings):
    """A reasoning-gym task (extra `gym`)."""

    kind: Literal["gym"] = "gym"
    gym_name: str = "chain_sum"
    """Name of the reasoning-gym dataset."""
    gym_settings: dict[str, Any] = {}
    """Its settings, e.g. {max_terms = 3}."""
    gym_seed: int = 0
    """Seed of the generated problems."""
    gym_train: int = Field(512, ge=1)
    """Number of training problems."""
    gym_validation: int = Field(64, ge=0)
    """Number of validation problems."""
    gym_demonstrations: int = Field(256, ge=1)
    """Number of demonstrations."""
    prompt_suffix: str = ""
    """Text put behind each question, e.g. how to answer."""


class ToolsTaskConfig(TaskSettings):
    """Sums of unknown numbers, with a table and a calculator as tools, generated from a seed."""

    kind: Literal["tools"] = "tools"
    tools_seed: int = 0
    """Seed of the prompts and tables; apart from the run's seed: runs share their data."""
    tools_terms: tuple[int, ...] = (3, 4)
    """Numbers of terms of training and validation prompts, drawn evenly."""
    tools_hard_terms: tuple[int, ...] = (5, 6)
    """Numbers of terms of the out-of-distribution split."""
    tools_prompts: int = Field(512, ge=1)
    """Size of the training split."""
    tools_validation: int = Field(128, ge=0)
    """Size of the validation split."""
    tools_hard: int = Field(128, ge=0)
    """Size of the out-of-distribution split."""
    tools_demonstrations: int = Field(256, ge=1)
    """Number of demonstrations."""
    tools_calls: int = Field(12, ge=0)
    """Calls of a completion that are answered."""
    tools_suffix: str = ""
    """Text put behind each question, e.g. how to call the tools."""

    @model_validator(mode="after")
    def _check(self) -> ToolsTaskConfig:
        wanted = {
            "tools_terms": self.tools_prompts + self.tools_validation,
            "tools_hard_terms": self.tools_hard,
        }
        for name, count in wanted.items():
            sizes = getattr(self, name)
            if not sizes or not 1 <= min(sizes) <= max(sizes) <= 10:
                raise ValueError(f"{name}: needs at least one number, each from 1 to 10")
            there = sum(perm(10, n) * 2 ** (n - 1) for n in set(sizes))  # of the table's 10 entries
            if 2 * count > there:
                raise ValueError(f"{name}: {count} prompts are too many, of {there} different ones")
        return self


class DatasetTaskConfig(TaskSettings):
    """Prompts and demonstrations from a file, a hub dataset or a list of rows."""

    kind: Literal["dataset"] = "dataset"
    data: str | tuple[dict[str, Any], ...]
    """A .jsonl, .parquet or .csv file, a hub id ('id:configuration'), or rows [{prompt = …}, …]."""
    data_split: str = "train"
    """Split to train on, for a hub id."""
    prompt_column: str = "prompt"
    """Column with the prompt."""
    messages_column: str = ""
    """Column with a chat, instead of prompt and solution; the assistant's last message is that."""
    solution_column: str = "solution"
    """Column with the worked solution (the demonstration); rows without one are RL prompts only."""
    answer_column: str = "answer"
    """Column with the final answer that the reward checks; "": what is found in the solution."""
    answer_pattern: str = r"(-?\d[\d,]*\.?\d*)(?!.*\d)"
    """Regular expression; its first group in a completion is the answer."""
    data_seed: int = 0
    """Seed of the shuffle that splits validation off."""
    data_shuffle: bool = True
    """Shuffle the rows; False keeps them in the data's order (steps draw at random anyway)."""
    data_limit: int = Field(0, ge=0)
    """Use so many rows, the first of them after the shuffle (0: all)."""
    validation_share: float = Field(0.1, ge=0, lt=1)
    """Share of rows held out for validation."""

    @field_validator("data")
    @classmethod
    def _few_rows(cls, data: str | tuple[dict[str, Any], ...]) -> Any:
        if not data:
            raise ValueError("task.data: is empty; name a file or a hub dataset, or give rows")
        if not isinstance(data, str) and len(data) > MOST_ROWS:
            raise ValueError(
                f"task.data: {len(data)} rows are too many for the config, which every snapshot "
                f"repeats; write them to a .jsonl file and name it (at most {MOST_ROWS})"
            )
        if isinstance(data, str):
            return data
        # TOML has no null: a value that is not there is left out
        return tuple({k: v for k, v in row.items() if v is not None} for row in data)

    @property
    def data_name(self) -> str:
        """The data, as a message names it."""
        return self.data if isinstance(self.data, str) else "the rows given"


TaskConfig = Annotated[
    ArithmeticTaskConfig | GymTaskConfig | ToolsTaskConfig | DatasetTaskConfig,
    Field(discriminator="kind"),
]
