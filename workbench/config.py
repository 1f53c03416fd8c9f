"""RunConfig: everything a run depends on, validated, in and out of TOML.

Sections are small frozen models. Every leaf has a name that is unique in the whole config, so a
setting can be named without its section: `s.set(rl_weight=0.7)`, `--set base_lr=5e-5`.
Settings marked live (they carry a range) can be changed while a run is going.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from workbench.presets import PRESETS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MethodName = Literal["bridge", "grpo", "sft", "naive_mix"]


class ConfigError(ValueError):
    """A setting is unknown or has a bad value; the message has one line for each."""


def live(default: Any, low: float, high: float, log: bool = False) -> Any:
    """A field that may change during a run, between `low` and `high`."""
    return Field(default, ge=low, le=high, json_schema_extra={"live": True, "log": log})


class Section(BaseModel):
    """A frozen group of settings; unknown names are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ModelConfig(Section):
    """The language model and the coordinator's shape."""

    path: str = "pocket"
    """'pocket' (embedded), 'smollm2' (see `fetch`), a hub id, a folder or a .gguf file."""
    gguf_file: str = ""
    """Name of a GGUF file inside `path`, where `path` is a hub id or folder."""
    chat_template: bool = True
    """Wrap prompts with the tokenizer's chat template, where it has one."""
    system_prompt: str = ""
    """System message of the chat template; empty: none."""
    device: str = "auto"
    """'auto', 'cpu', 'cuda', 'cuda:1', …"""
    lora_rank: int = Field(16, ge=1)
    """Rank r of the coordinator. [paper]"""
    lora_alpha: float = Field(16.0, gt=0)
    """The coordinator's scale is alpha / r. [paper]"""


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


class TrainingConfig(Section):
    """The meta-training step; see each method's file for what it uses."""

    rl_weight: float = live(0.5, 0.0, 1.0)
    """λ: weight of RL in the fused objective. [paper: 0.5]"""
    sft_weight: float = live(1.0, 0.0, 10.0)
    """μ of `naive_mix`: weight of the SFT loss beside the RL loss."""
    base_lr: float = live(5e-5, 0.0, 1.0, log=True)
    """α: learning rate of θ and of the RL-only baseline θ̂. [paper: 5e-7 at 3 B parameters]"""
    coordinator_lr: float = live(5e-4, 0.0, 1.0, log=True)
    """β: learning rate of the coordinator w. [paper: 5e-7]"""
    train_coordinator: bool = True
    """False keeps w as it is (ablation)."""
    coordinator_objective: Literal["gain", "mixed"] = "gain"
    """gain: (1−λ)g^S + λ(g^R − ĝ) [paper]; mixed: (1−λ)g^S + λg^R, the paper's 'without J_meta'."""
    baseline_mode: Literal["persistent", "reset"] = "persistent"
    """persistent: θ̂ follows its own RL-only path [paper]; reset: θ + one RL-only step. [ours]"""
    prompts_per_step: int = Field(16, ge=1)
    """P: RL prompts a step. [paper: 64]"""
    group_size: int = Field(8, ge=2)
    """G: rollouts a prompt. [paper: 5]"""
    demonstrations_per_step: int = Field(16, ge=2)
    """D: demonstrations a step."""
    set_aside: tuple[str, ...] = ()
    """Ids of demonstrations that no step draws; `Session.set_aside` changes it in a run. [ours]"""
    micro_batch_tokens: int = Field(2048, ge=1)
    """Tokens, padding included, of one forward and backward pass; gradients do not depend on it."""
    clip_range: float = live(0.2, 0.0, 10.0)
    """PPO clip ε of the probability ratio. [infer]"""
    kl_coef: float = live(1e-3, 0.0, 10.0, log=True)
    """Coefficient of the k3 KL to the frozen starting policy. [infer]"""
    max_grad_norm: float = live(1.0, 1e-6, 1e6, log=True)
    """Each of the three gradients is clipped to this norm. [infer]"""
    reward_flip: float = live(0.0, 0.0, 1.0)
    """Probability that a training reward is flipped (noise study of the paper)."""


class SamplingConfig(Section):
    """How rollouts are drawn. Top-k and top-p are off, or sampler and trainer would disagree."""

    max_new_tokens: int = Field(64, ge=1)
    """Longest completion of a training rollout."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature; log-probs are taken at the same temperature."""
    sampling_batch: int = Field(256, ge=1)
    """Sequences generated at once."""


class ProbesConfig(Section):
    """What is measured, and every how many steps (0: never)."""

    alignment_every: int = Field(1, ge=0)
    """Gradient alignment per layer, and each demonstration's inner product with the RL gradient."""
    rollout_alignment_every: int = Field(0, ge=0)
    """Each rollout's inner products with both gradients (one more backward pass over them all)."""
    shared_gain_every: int = Field(1, ge=0)
    """Cooperative gain from the step's own rollouts."""
    paired_gain_every: int = Field(10, ge=0)
    """Cooperative gain from paired rollouts on the probe set."""
    paired_prompts: int = Field(16, ge=1)
    """Prompts of the probe set."""
    paired_rollouts: int = Field(8, ge=2)
    """K: rollouts a side for each probe prompt."""
    token_views_every: int = Field(1, ge=0)
    """Per-token log-probs with the coordinator off (one more forward pass)."""
    coordinator_every: int = Field(5, ge=0)
    """‖ΔW‖/‖W‖ and singular values of the coordinator per layer."""
    evaluate_every: int = Field(5, ge=0)
    """Greedy accuracy on the validation and hard splits."""
    evaluation_prompts: int = Field(64, ge=1)
    """Prompts of each evaluation."""
    evaluation_max_new_tokens: int = Field(96, ge=1)
    """Longest completion of an evaluation."""


def due(every: int, step: int) -> bool:
    """Whether a probe with this schedule runs at this step: step 1, then each multiple of it."""
    return every > 0 and (step == 1 or step % every == 0)


class SnapshotsConfig(Section):
    """When the state is written, and what is kept. Step 0 is always kept."""

    snapshot_every: int = Field(5, ge=1)
    """Steps between snapshots."""
    keep_last: int = Field(4, ge=1)
    """Keep this many of the newest."""
    keep_every: int = Field(20, ge=0)
    """Also keep each snapshot whose step is a multiple of this (0: none)."""


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
    method: MethodName = "bridge"
    """What trains the model; one file each in workbench/training/methods."""
    model: ModelConfig = ModelConfig()
    task: TaskConfig = ArithmeticTaskConfig()
    training: TrainingConfig = TrainingConfig()
    sampling: SamplingConfig = SamplingConfig()
    probes: ProbesConfig = ProbesConfig()
    snapshots: SnapshotsConfig = SnapshotsConfig()

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> RunConfig:
        """Build from nested values. Raises ConfigError with one line for each bad field."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError("\n".join(_explain(error))) from None

    @classmethod
    def preset(cls, name: str, **changes: Any) -> RunConfig:
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
        try:
            return cls.parse(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"config: {path} is not TOML: {error}") from None

    def to_toml(self) -> str:
        """The whole config as TOML; `RunConfig.load` reads it back equal."""
        return tomli_w.dumps(self.model_dump(mode="json"))

    def with_changes(self, **changes: Any) -> RunConfig:
        """A copy with settings replaced, by leaf name: with_changes(base_lr=1e-5, seed=3).

        A whole section may be given too: with_changes(task={"kind": "dataset", "data": "x.jsonl"}).
        Raises ConfigError where a name is unknown or a value does not fit.
        """
        values = self.model_dump(mode="json")
        sections = self._leaf_sections()
        for name, value in changes.items():
            if name in values:
                values[name] = value.model_dump() if isinstance(value, BaseModel) else value
            elif name in sections:
                values[sections[name]][name] = value
            else:
                raise ConfigError(f"{name}: no such setting{_suggest(name, [*values, *sections])}")
        return RunConfig.parse(values)

    def get(self, name: str) -> Any:
        """The value of a setting by its leaf name."""
        if name in type(self).model_fields:
            return getattr(self, name)
        sections = self._leaf_sections()
        if name not in sections:
            raise ConfigError(f"{name}: no such setting{_suggest(name, list(sections))}")
        return getattr(getattr(self, sections[name]), name)

    def flat(self) -> dict[str, Any]:
        """Every setting by its leaf name."""
        return {name: self.get(name) for name in ("seed", "method", *self._leaf_sections())}

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
        where = [str(part) for part in problem["loc"]]
        kinds = {get_args(t.model_fields["kind"].annotation)[0] for t in _TASK_TYPES}
        where = [
            p for i, p in enumerate(where) if not (i == 1 and where[0] == "task" and p in kinds)
        ]
        name = ".".join(where) or "config"
        if problem["type"] == "extra_forbidden":
            lines.append(f"{name}: no such setting{_suggest(where[-1], _all_leaves())}")
        elif problem["type"] == "value_error":
            lines.append(str(problem["ctx"]["error"]))
        else:
            value = repr(problem.get("input"))
            shown = value if len(value) <= 60 else value[:57] + "…"
            lines.append(f"{name}: {problem['msg']} (got {shown})")
    return lines


def _suggest(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


_TASK_TYPES = (ArithmeticTaskConfig, GymTaskConfig, DatasetTaskConfig)


def _all_leaves() -> list[str]:
    sections: list[type[BaseModel]] = [ModelConfig, TrainingConfig, SamplingConfig]
    sections += [ProbesConfig, SnapshotsConfig, *_TASK_TYPES]
    return [leaf for s in sections for leaf in s.model_fields]


KNOBS = _knobs()
"""The live settings, in the order of the config."""
