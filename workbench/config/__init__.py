"""RunConfig and its sections; every setting, with its default and what it does."""

from workbench.config.diagnosis import DiagnosisConfig, FaultsConfig, Policy
from workbench.config.rewards import RewardConfig, RewardKind
from workbench.config.run import KNOBS, ConfigError, Knob, MethodName, RunConfig
from workbench.config.sections import (
    ModelConfig,
    ProbesConfig,
    SamplingConfig,
    Section,
    SnapshotsConfig,
    TrainingConfig,
    due,
)
from workbench.config.tasks import (
    ArithmeticTaskConfig,
    DatasetTaskConfig,
    GymTaskConfig,
    TaskConfig,
    TaskSettings,
    ToolsTaskConfig,
)

__all__ = [
    "ArithmeticTaskConfig",
    "ConfigError",
    "DatasetTaskConfig",
    "DiagnosisConfig",
    "FaultsConfig",
    "GymTaskConfig",
    "KNOBS",
    "Knob",
    "MethodName",
    "ModelConfig",
    "Policy",
    "ProbesConfig",
    "RewardConfig",
    "RewardKind",
    "RunConfig",
    "SamplingConfig",
    "Section",
    "SnapshotsConfig",
    "TaskConfig",
    "TaskSettings",
    "ToolsTaskConfig",
    "TrainingConfig",
    "due",
]
