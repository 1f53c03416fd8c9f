"""What a run trains on: one section a kind of task."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from workbench.config.sections import Section


class ArithmeticTaskConfig(Section):
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


class GymTaskConfig(Section):
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


class DatasetTaskConfig(Section):
    """Prompts and demonstrations from a file or hub dataset, read with `datasets`."""

    kind: Literal["dataset"] = "dataset"
    data: str
    """A .jsonl, .parquet or .csv file, or a hub id, with ':configuration' where it has several."""
    data_split: str = "train"
    """Split to train on, for a hub id."""
    prompt_column: str = "prompt"
    """Column with the prompt."""
    solution_column: str = "solution"
    """Column with the worked solution (the demonstration); rows without one are RL prompts only."""
    answer_column: str = "answer"
    """Column with the final answer that the reward checks."""
    answer_pattern: str = r"(-?\d[\d,]*\.?\d*)(?!.*\d)"
    """Regular expression; its first group in a completion is the answer."""
    data_seed: int = 0
    """Seed of the shuffle that splits validation off."""
    validation_share: float = Field(0.1, ge=0, lt=1)
    """Share of rows held out for validation."""


TaskConfig = Annotated[
    ArithmeticTaskConfig | GymTaskConfig | DatasetTaskConfig, Field(discriminator="kind")
]
