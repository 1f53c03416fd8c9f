"""Where prompts, demonstrations and verifiable rewards come from."""

from __future__ import annotations

from workbench.config import ArithmeticTaskConfig, GymTaskConfig, TaskConfig
from workbench.tasks.arithmetic import ArithmeticTask
from workbench.tasks.dataset import DatasetTask
from workbench.tasks.gym import GymTask
from workbench.tasks.problem import Demonstration, Problem, Split, Task

__all__ = ["Demonstration", "Problem", "Split", "Task", "make_task"]


def make_task(config: TaskConfig) -> Task:
    """The task a config describes.

    It has a seed of its own, so that runs with different seeds share their data. Raises ConfigError
    where the data cannot be had.
    """
    if isinstance(config, ArithmeticTaskConfig):
        return ArithmeticTask(config)
    if isinstance(config, GymTaskConfig):
        return GymTask(config)
    return DatasetTask(config)
