"""The sections of a RunConfig but the task's. Each leaf's docstring is its help everywhere."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any, Literal

from pydantic import Field, field_validator

from workbench.config.methods import MethodSettings, Section


def live(default: Any, low: float, high: float, log: bool = False) -> Any:
    """A field that may change during a run, between `low` and `high`."""
    return Field(default, ge=low, le=high, json_schema_extra={"live": True, "log": log})


OffloadPart = Literal["reference", "baseline", "base", "gradients", "gradient_sum"]


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
    lora_targets: tuple[str, ...] = ()
    """Names of the linear layers that have a coordinator, e.g. ["q_proj"]; empty: all. [infer]"""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of forward and backward passes (autocast); weights and optimizers are float32. [ours]"""
    gradient_checkpointing: bool = False
    """Compute layers again in the backward pass instead of keeping them: a third more time."""
    reference: Literal["start", "none"] = "start"
    """The frozen policy that the KL is taken to: the model at the start, or none (then no KL)."""
    reference_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the reference's weights; bfloat16 halves them and rounds its log-probs."""
    offload: tuple[OffloadPart, ...] = ()
    """What waits on the CPU: weights while not in use (base: θ; base's and baseline's AdamW then
    stays there for good), gradients once complete, gradient_sum also while they are summed."""

    @field_validator("offload")
    @classmethod
    def _whole_sums(cls, parts: tuple[OffloadPart, ...]) -> tuple[OffloadPart, ...]:
        if "gradient_sum" in parts and "gradients" not in parts:
            raise ValueError('model.offload: "gradient_sum" goes with "gradients"; name both')
        return parts


class TrainingConfig(MethodSettings):
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


class EvaluationSetConfig(Section):
    """A set of problems that is evaluated during training: greedily, on a schedule of its own."""

    set: str = Field(min_length=1)
    """validation, hard, math500, … (what `eval --sets` knows), gym:NAME or a file of problems."""
    name: str = ""
    """How it is called in records and plots; default: the set's name, or the file's."""
    every: int = Field(50, ge=1)
    """Steps between two evaluations; the first is at step 1."""
    problems: int = Field(64, ge=1)
    """Its first so many problems."""
    max_new_tokens: int = Field(0, ge=0)
    """Longest completion (0: evaluation_max_new_tokens)."""
    reward: Literal["task", "math", "exact", "choice"] = "task"
    """What scores a file's completions; named sets are always scored by math-verify."""
    prompt_column: str = ""
    """A file's column with the problem; empty: as the task's data have it, else 'prompt'."""
    answer_column: str = ""
    """A file's column with the answer; empty: as the task's data have it, else 'answer'."""
    suffix: str = "auto"
    """Text behind each prompt; auto: how to box an answer for named sets, else nothing."""
    folder: str = "data"
    """Where files of named sets are looked for before the hub is asked."""

    @property
    def label(self) -> str:
        """What it is called: 'eval/accuracy/<label>' is its metric."""
        is_file = self.set.lower().endswith((".jsonl", ".json", ".parquet", ".csv"))
        return self.name or (PurePath(self.set).name if is_file else self.set)

    @field_validator("set")
    @classmethod
    def _in_process(cls, name: str) -> str:
        if name.startswith("lm-eval:"):
            raise ValueError(
                f"evaluation_sets.set: {name!r} needs the exported model; "
                "use `python -m workbench eval RUN --sets` instead"
            )
        return name


class ProbesConfig(Section):
    """What is measured, and every how many steps: at step 1 and each multiple; 0: never.

    With these defaults the probes but evaluation take under a tenth of a step's time on the pocket
    model. The metrics 'seconds/probe/<name>' and the app's Run tab say what each takes in a run.
    """

    alignment_every: int = Field(1, ge=0)
    """Gradient alignment per layer, and each demonstration's inner product with the RL gradient."""
    rollout_alignment_every: int = Field(0, ge=0)
    """Each rollout's inner products with both gradients (one more backward pass over them all)."""
    shared_gain_every: int = Field(1, ge=0)
    """Cooperative gain from the step's own rollouts."""
    paired_gain_every: int = Field(20, ge=0)
    """Cooperative gain from paired rollouts on the probe set; also on demand."""
    paired_prompts: int = Field(12, ge=1)
    """Prompts of the probe set."""
    paired_rollouts: int = Field(10, ge=2)
    """K: rollouts a side for each probe prompt. Below 9 no single one of 12 can be told helped."""
    token_views_every: int = Field(5, ge=0)
    """Per-token log-probs with the coordinator off (one more forward pass)."""
    coordinator_every: int = Field(5, ge=0)
    """‖ΔW‖/‖W‖ and singular values of the coordinator per layer."""
    evaluate_every: int = Field(10, ge=0)
    """Greedy accuracy on the validation and hard splits."""
    evaluation_prompts: int = Field(64, ge=1)
    """Prompts of each evaluation."""
    evaluation_max_new_tokens: int = Field(96, ge=1)
    """Longest completion of an evaluation."""
    evaluation_sets: tuple[EvaluationSetConfig, ...] = ()
    """More sets, each with a schedule: [[probes.evaluation_sets]] set = "math500", every = 50."""

    @field_validator("evaluation_sets")
    @classmethod
    def _told_apart(cls, sets: tuple[EvaluationSetConfig, ...]) -> tuple[EvaluationSetConfig, ...]:
        labels = [each.label for each in sets]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"evaluation_sets: two are called {twice[0]!r}; give one another name")
        return sets


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
    snapshot_budget_mb: float = Field(0.0, ge=0)
    """Bytes that all snapshots may take, in 10⁶ (0: any): the oldest unpinned go first. [ours]"""
