"""Where prompts, demonstrations and verifiable rewards come from."""

from __future__ import annotations

from pydantic import TypeAdapter

from workbench.config import ArithmeticTaskConfig, GymTaskConfig, TaskConfig, ToolsTaskConfig
from workbench.tasks.arithmetic import ArithmeticTask
from workbench.tasks.dataset import DatasetTask
from workbench.tasks.gym import GymTask
from workbench.tasks.prepared import PreparedTask, environments, score
from workbench.tasks.problem import Demonstration, Problem, Split, Task
from workbench.tasks.scoring import Score
from workbench.tasks.tools import ToolsTask

__all__ = [
    "Demonstration",
    "PreparedTask",
    "Problem",
    "Score",
    "Split",
    "Task",
    "environments",
    "make_task",
    "score",
]


def make_task(config: TaskConfig) -> Task:
    """The task a config describes.

    It has a seed of its own, so that runs with different seeds share their data. Raises ConfigError
    where the data or a reward cannot be had.
    """
    if config.plain:
        return _own(config)
    source = None
    if config.demonstrations_from:
        source = make_task(TypeAdapter(TaskConfig).validate_python(config.demonstrations_from))
    return PreparedTask(_own(config), config, source)


def _own(config: TaskConfig) -> Task:
    if isinstance(config, ArithmeticTaskConfig):
        return ArithmeticTask(config)
    if isinstance(config, GymTaskConfig):
        return GymTask(config)
    if isinstance(config, ToolsTaskConfig):
        return ToolsTask(config)
    return DatasetTask(config)
