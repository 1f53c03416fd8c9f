"""RunConfig: everything a run depends on, validated, in and out of TOML.

Sections are small frozen models. Every leaf has a name that is unique in the whole config, so a
setting can be named without its section: `s.set(rl_weight=0.7)`, `--set base_lr=5e-5`.
Settings marked live (they carry a range) can be changed while a run is going.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ValidationError, field_validator

from workbench.config.diagnosis import DiagnosisConfig, FaultsConfig
from workbench.config.sections import (
    ModelConfig,
    ProbesConfig,
    SamplingConfig,
    Section,
    SnapshotsConfig,
    TrainingConfig,
)
from workbench.config.tasks import (
    ArithmeticTaskConfig,
    DatasetTaskConfig,
    GymTaskConfig,
    TaskConfig,
    TaskSettings,
    ToolsTaskConfig,
)
from workbench.presets import PRESETS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MethodName = Literal[
    "bridge",
    "grpo",
    "sft",
    "naive_mix",
    "cold_start",
    "alternating",
    "luffy",
    "srft",
    "chord_mu",
    "chord_phi",
    "relift",
    "hpt",
    "superrl",
    "prefix_rft",
    "uft",
    "actguide",
    "aipo",
]
"""The methods that come with the workbench."""


class ConfigError(ValueError):
    """A setting is unknown or has a bad value; the message has one line for each."""


@dataclass(frozen=True)
class Knob:
    """A live setting: where it is, its range and what it does."""

    name: str
    section: str
    low: float
    high: float
    log: bool
    doc: str


class RunConfig(Section):
    """Everything a run depends on. Two runs with equal configs give equal numbers."""

    seed: int = 0
    """Seed of rollouts, of data order and of the coordinator's initial weights."""
    method: str = "bridge"
    """What trains the model: a MethodName, or one of your own as 'mymodule:MyMethod'."""
    model: ModelConfig = ModelConfig()
    task: TaskConfig = ArithmeticTaskConfig()
    training: TrainingConfig = TrainingConfig()
    sampling: SamplingConfig = SamplingConfig()
    probes: ProbesConfig = ProbesConfig()
    snapshots: SnapshotsConfig = SnapshotsConfig()
    diagnosis: DiagnosisConfig = DiagnosisConfig()
    faults: FaultsConfig = FaultsConfig()

    @field_validator("method")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in get_args(MethodName) and not re.fullmatch(r"[\w.]+:\w+", name):
            known = ", ".join(get_args(MethodName))
            raise ValueError(
                f"method: no method {name!r}{_suggest(name, list(get_args(MethodName)))}; "
                f"there are {known}, or your own as module:Class"
            )
        return name

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> RunConfig:
        """Build from nested values. Raises ConfigError with one line for each bad field."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError("\n".join(_explain(error))) from None

    @classmethod
    def preset(cls, name: str, /, **changes: Any) -> RunConfig:
        """A named starting point, with `changes` applied: RunConfig.preset('pocket', seed=1)."""
        if name not in PRESETS:
            raise ConfigError(f"preset: no preset {name!r}; there are {', '.join(PRESETS)}")
        return cls.parse(PRESETS[name]).with_changes(**changes)

    @classmethod
    def load(cls, path: str | Path) -> RunConfig:
        """Read a TOML file. Raises ConfigError where it is missing, malformed or has bad fields."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"config: cannot read {path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"config: {path} is not UTF-8 text") from None
        try:
            values = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # also a number of thousands of digits
            raise ConfigError(f"config: {path} is not TOML: {_shown(str(error), 200)}") from None
        return cls.parse(values)

    def to_toml(self) -> str:
        """The whole config as TOML; `RunConfig.load` reads it back equal."""
        return tomli_w.dumps(self.model_dump(mode="json"))

    def with_changes(self, /, **changes: Any) -> RunConfig:
        """A copy with settings replaced, by leaf name: with_changes(base_lr=1e-5, seed=3).

        A whole section may be given too: with_changes(task={"kind": "dataset", "data": "x.jsonl"}).
        A new `kind` of task keeps the settings that all kinds have; those of its own start at their
        defaults. Raises ConfigError where a name is unknown or a value does not fit.
        """
        values = self.model_dump(mode="json")
        sections = self._leaf_sections()
        if (kind := _TASKS.get(str(changes.get("kind")))) and kind is not type(self.task):
            values["task"] = {
                n: v for n, v in values["task"].items() if n in TaskSettings.model_fields
            }
            sections = {n: s for n, s in sections.items() if s != "task"}
            sections |= dict.fromkeys(kind.model_fields, "task")
        for name, value in changes.items():
            if name in values:
                values[name] = value.model_dump() if isinstance(value, BaseModel) else value
            elif name in sections:
                values[sections[name]][name] = value
            else:
                elsewhere = _elsewhere(name, str(changes.get("kind", self.task.kind)))
                near = elsewhere or _suggest(name, [*values, *sections])
                raise ConfigError(f"{_shown(name)}: no such setting{near}")
        return RunConfig.parse(values)

    def get(self, name: str) -> Any:
        """The value of a setting by its leaf name."""
        if name in type(self).model_fields:
            return getattr(self, name)
        sections = self._leaf_sections()
        if name not in sections:
            raise ConfigError(f"{_shown(name)}: no such setting{_suggest(name, list(sections))}")
        return getattr(getattr(self, sections[name]), name)

    def flat(self) -> dict[str, Any]:
        """Every setting by its leaf name."""
        leaves = self._leaf_sections().items()
        values = {leaf: getattr(getattr(self, section), leaf) for leaf, section in leaves}
        return {"seed": self.seed, "method": self.method, **values}

    def _leaf_sections(self) -> dict[str, str]:
        return {
            leaf: section
            for section in type(self).model_fields
            if isinstance(getattr(self, section), BaseModel)
            for leaf in type(getattr(self, section)).model_fields
        }

    def check_live(self, changes: Mapping[str, Any]) -> RunConfig:
        """The config with live settings changed. Raises ConfigError where one is not live."""
        knobs = {knob.name for knob in KNOBS}
        for name in changes:
            self.get(name)
            if name not in knobs:
                raise ConfigError(
                    f"{name}: cannot change during a run; fork with it instead "
                    f"(live: {', '.join(sorted(knobs))})"
                )
        return self.with_changes(**changes)


def _knobs() -> list[Knob]:
    knobs = []
    for section, info in RunConfig.model_fields.items():
        annotation = info.annotation
        if get_origin(annotation) is not None or not isinstance(annotation, type):
            continue
        if not issubclass(annotation, BaseModel):
            continue
        for name, field in annotation.model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("live"):
                low = next(m.ge for m in field.metadata if hasattr(m, "ge"))
                high = next(m.le for m in field.metadata if hasattr(m, "le"))
                doc = field.description or ""
                knobs.append(Knob(name, section, low, high, bool(extra["log"]), doc))
    return knobs


def _explain(error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors():
        where = [_shown(str(part)) for part in problem["loc"]]
        kind = where[1] if where[:1] == ["task"] and len(where) > 1 and where[1] in _TASKS else ""
        where = [where[0], *where[2:]] if kind else where
        name = ".".join(where) or "config"
        if problem["type"] == "extra_forbidden":
            elsewhere = _elsewhere(where[-1], kind) if kind else ""
            near = _suggest(where[-1], _all_leaves())
            lines.append(f"{name}: no such setting{elsewhere or near}")
        elif problem["type"] == "union_tag_invalid":
            kinds_said, tag = problem["ctx"]["expected_tags"], problem["ctx"]["tag"]
            lines.append(f"{name}.kind: Input should be one of {kinds_said} (got {_shown(tag)!r})")
        elif problem["type"] == "value_error":
            lines.append(_shown(str(problem["ctx"]["error"]), 500))
        else:
            lines.append(f"{name}: {problem['msg']} (got {_shown(_repr(problem['input']))})")
    return list(dict.fromkeys(lines))


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"a {type(value).__name__} too long to write"


def _shown(text: str, length: int = 60) -> str:
    """Text from a config as one line can hold it: nothing that breaks or reverses the line."""
    plain = text if text.isprintable() else ascii(text)[1:-1]
    return plain if len(plain) <= length else plain[: length - 1] + "…"


def _suggest(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _elsewhere(name: str, kind: str) -> str:
    """Which kind of task has a setting that this one has not; '' where none has."""
    has = [repr(other) for other, task in _TASKS.items() if name in task.model_fields]
    return f" of tasks of kind {_shown(kind)!r}; kind {has[0]} has it" if has else ""


_TASK_TYPES = (ArithmeticTaskConfig, GymTaskConfig, ToolsTaskConfig, DatasetTaskConfig)
_TASKS = {get_args(task.model_fields["kind"].annotation)[0]: task for task in _TASK_TYPES}


def _all_leaves() -> list[str]:
    sections: list[type[BaseModel]] = [ModelConfig, TrainingConfig, SamplingConfig]
    sections += [ProbesConfig, SnapshotsConfig, DiagnosisConfig, FaultsConfig, *_TASK_TYPES]
    return [leaf for s in sections for leaf in s.model_fields]


KNOBS = _knobs()
"""The live settings, in the order of the config."""
