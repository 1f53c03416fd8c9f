"""What memory a run will take, part by part, before anything is loaded.

    plan = memory_plan(RunConfig.preset("qwen2.5-3b"))
    print(plan.table())

The model is built without memory (torch's meta device) from its config.json, or for the models of
the presets from the shapes below, so this works offline. Weights, gradients, moments and the KV
cache are exact counts. Activations and logits are formulas of a Llama-like block, kept within a
fifth of what the pocket model is measured to keep (tests/test_plan.py). [ours]

    N parameters of the model, E of its largest tensor, L of the coordinator, h hidden size, f width
    of the MLP, q and k widths of all query and of all key heads, r rank, V vocabulary, n layers, M
    tokens of a micro-batch, S sequences generated at once, T their length; a computed number has 4
    bytes, or 2 in bf16
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from workbench.config import ConfigError, RunConfig, due
from workbench.config.sections import OffloadPart
from workbench.models import POCKET_FOLDER, smollm2_folder
from workbench.training.gradients import RL_BLOCKS, SFT_BLOCKS
from workbench.training.methods import make_method
from workbench.training.moments import CHUNK

_LLAMA_3B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen2.5-3B": {
        "model_type": "qwen2",
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "meta-llama/Llama-3.2-3B-Instruct": _LLAMA_3B,
    "Qwen/Qwen3-8B-Base": {
        "model_type": "qwen3",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": False,
    },
}
"""config.json of models that presets name, as far as sizes depend on it."""

PROMPT_TOKENS = 512
"""Length of a prompt, where max_prompt_tokens does not bound it."""


Place = Literal["device", "cpu"]
Phase = Literal["sampling", "gradients", "update"]
PHASES: tuple[Phase, ...] = ("sampling", "gradients", "update")


@dataclass(frozen=True)
class Item:
    """One part of the memory."""

    name: str
    bytes: int
    where: Place
    how: str
    """The formula."""
    phases: tuple[Phase, ...] = ()
    """When it is there; empty: always."""


@dataclass(frozen=True)
class MemoryPlan:
    """The parts, and what they come to."""

    model: str
    n_parameters: int
    n_coordinator: int
    items: tuple[Item, ...]

    def most(self, where: Place) -> int:
        """The most at once: what is always there, and the phase that takes most beside it."""
        here = [item for item in self.items if item.where == where]
        by_phase = [sum(i.bytes for i in here if phase in i.phases) for phase in PHASES]
        return sum(item.bytes for item in here if not item.phases) + max(by_phase)

    @property
    def device_bytes(self) -> int:
        """The most at once on the device."""
        return self.most("device")

    @property
    def cpu_bytes(self) -> int:
        """The most at once on the CPU: what waits there, and a snapshot while it is written."""
        return self.most("cpu")

    def table(self) -> str:
        """The plan as text, in GiB."""
        width = max(len(item.name) for item in self.items)
        lines = [
            f"{self.model}: {self.n_parameters:,} parameters, coordinator {self.n_coordinator:,}"
        ]
        for item in self.items:
            place = "" if item.where == "device" else " (on the CPU)"
            lines.append(f"  {item.name:<{width}}  {gib(item.bytes):>10}  {item.how}{place}")
        lines.append(f"  {'most at once':<{width}}  {gib(self.device_bytes):>10}  on the device")
        lines.append(f"  {'':<{width}}  {gib(self.cpu_bytes):>10}  on the CPU")
        return "\n".join(lines)


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.2f} MiB"


def memory_plan(config: RunConfig) -> MemoryPlan:
    """The plan of a run. Raises ConfigError where the model's shape cannot be known."""
    shape = _shape(config.model.path)
    n_base, n_lora, largest = count_parameters(shape, config)
    method, c = make_method(config), config
    offload, tracked = c.model.offload, method.baseline or c.training.track_baseline
    items: list[Item] = []

    def add(name: str, size: float, how: str, where: Place = "device", *phases: Phase) -> None:
        if size:
            items.append(Item(name, int(size), where, how, phases))

    def place(part: OffloadPart) -> Place:
        return "cpu" if part in offload else "device"

    add("θ", 4 * n_base, "4·N", place("base"))
    if tracked:
        add("θ̂", 4 * n_base, "4·N", place("baseline"))
    b_reference = 2 if c.model.reference_dtype == "bfloat16" else 4
    has_reference = (method.rollouts or tracked) and c.model.reference == "start"
    if has_reference:
        add("reference", b_reference * n_base, f"{b_reference}·N", place("reference"))
    add("w", 4 * n_lora, "4·L")
    add("Adam of θ", 8 * n_base, "8·N", place("base"))
    if method.own_sft:
        add("Adam of SFT steps", 8 * n_base, "8·N", place("base"))
    if tracked:
        add("Adam of θ̂", 8 * n_base, "8·N", place("baseline"))
    if method.coordinator:
        add("Adam of w", 8 * n_lora, "8·L")
    waits = {"base": 4 * n_base}
    if tracked:
        waits["baseline"] = 4 * n_base
    if has_reference:
        waits["reference"] = b_reference * n_base
    brought = max((size for part, size in waits.items() if part in offload), default=0)
    how = f"{brought // n_base}·N, one at a time"
    add("the part in place", brought, how, "device", "sampling", "gradients")

    n_all = n_base + (n_lora if method.coordinator else 0)
    rounds = sum((method.rollouts, method.demonstrations, tracked))
    kept = place("gradients")
    add(
        "gradients", 4 * rounds * n_all, f"{rounds} objectives · 4·(N+L)",
        kept, "gradients", "update",
    )  # fmt: skip
    if kept == "cpu" and place("gradient_sum") == "device":
        add("the gradient being summed", 4 * n_all, "4·(N+L)", "device", "gradients")
    add("gradient of a tensor", 8 * largest, "2 uses · 4·E", "device", "gradients")
    mixes = method.demonstrations and method.rollouts
    if mixes and due(c.probes.alignment_every, 1):
        n_kept = RL_BLOCKS - 1 + SFT_BLOCKS - 1
        how = f"{n_kept} · 2·(N+L)"
        add("gradients of blocks", 2 * n_kept * n_all, how, kept, "gradients", "update")
    if mixes:
        add("update: mixed gradient", 4 * n_all, "4·(N+L)", kept, "update")
    chunk = min(n_base, max(CHUNK, largest))
    add("update: of some tensors", 4 * chunk, "4·max(2²⁸, E)", place("base"), "update")
    add("update: norm of a tensor", 16 * largest, "16·E, in float64", kept, "update")

    longest = (c.task.max_prompt_tokens or PROMPT_TOKENS) + c.sampling.max_new_tokens
    wide = c.model.compute_dtype == "bfloat16"
    b = 2 if wide else 4
    m = c.training.micro_batch_tokens
    if c.task.max_prompt_tokens:  # a text that is longer than a micro-batch stands alone
        m = max(m, longest)
    if wide:
        add("weights in bf16", 2 * (n_base + n_lora), "2·(N+L)", "device", "sampling", "gradients")
    per_layer = layer_bytes(shape, c, b)
    layers = shape.num_hidden_layers
    if c.model.gradient_checkpointing:
        size = 4 * shape.hidden_size * (layers + 3) + per_layer
        add("activations", m * size, "M·(4h·(n+3) + one layer's)", "device", "gradients")
    else:
        cast = " + 2·(10h+q+f)" if wide else ""
        size = layers * per_layer + 12 * shape.hidden_size
        how = f"M·(n·(4·6h + {b}·(5q+4f+7r){cast}) + 12h)"
        add("activations", m * size, how, "device", "gradients")
    add("logits", 5 * 4 * m * shape.vocab_size, "5 copies · 4·M·V", "device", "gradients")

    s, t = _generated(c, longest if method.rollouts or tracked else 0)
    if s:
        how = f"2·{b}·n·k·S·T, S={s}, T={t}"
        add("sampling: KV cache", kv_bytes(shape, s, t, b), how, "device", "sampling")
        # float32 logits, scaled, noisy, and three int64 arrays that the noise is made of
        size = 36 * s * shape.vocab_size
        add("sampling: logits and noise", size, "36·S·V", "device", "sampling")
    lasting = {"θ", "θ̂", "w", *(item.name for item in items if item.name.startswith("Adam"))}
    size = sum(item.bytes for item in items if item.name in lasting)
    add("a snapshot being written", size, "a copy of θ, θ̂, w and each Adam", "cpu")
    return MemoryPlan(c.model.path, n_base, n_lora, tuple(items))


def _generated(config: RunConfig, longest: int) -> tuple[int, int]:
    """(most sequences at once, longest) of rollouts and evaluations; longest: of rollouts."""
    t, probes = config.training, config.probes
    prompt = config.task.max_prompt_tokens or PROMPT_TOKENS
    draws = [(t.prompts_per_step * t.group_size, longest)] if longest else []
    if probes.evaluate_every:
        draws.append((probes.evaluation_prompts, prompt + probes.evaluation_max_new_tokens))
    for chosen in probes.evaluation_sets:
        most = chosen.max_new_tokens or probes.evaluation_max_new_tokens
        draws.append((chosen.problems, prompt + most))
    n = max((n for n, _ in draws), default=0)
    return min(config.sampling.sampling_batch, n), max((length for _, length in draws), default=0)


def layer_bytes(shape: PretrainedConfig, config: RunConfig, b: int) -> int:
    """What one block keeps of one token for its backward pass, attention by `sdpa`.

    Two norms keep the residual stream, its normalised form and their output in float32 (6h); the
    attention its queries, keys and values repeated to as many, its output and a copy of it (5q);
    the MLP gate, up, the activation and the product (4f); each of seven LoRA layers r numbers.
    In bf16 a layer with a coordinator keeps copies of its input, cast for each of its two parts.
    """
    width = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    q, f, h = shape.num_attention_heads * width, shape.intermediate_size, shape.hidden_size
    casts = 2 * (10 * h + q + f) if b == 2 else 0
    return 4 * 6 * h + b * (5 * q + 4 * f + 7 * config.model.lora_rank) + casts


def kv_bytes(shape: PretrainedConfig, sequences: int, length: int, b: int) -> int:
    """Keys and values of `sequences` texts of `length` tokens in all layers."""
    heads = shape.num_key_value_heads or shape.num_attention_heads
    width = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    return 2 * b * shape.num_hidden_layers * heads * width * sequences * length


class Counts(NamedTuple):
    """Numbers of parameters."""

    base: int
    coordinator: int
    largest: int
    """Of the model's largest tensor."""


def count_parameters(shape: PretrainedConfig, config: RunConfig) -> Counts:
    """Parameters of the model and of the coordinator, counted on the meta device."""
    return _counted(shape.to_json_string(), config.model.lora_rank, config.model.lora_targets)


@cache
def _counted(shape: str, lora_rank: int, lora_targets: tuple[str, ...]) -> Counts:
    lora = LoraConfig(
        r=lora_rank, target_modules=list(lora_targets) or "all-linear", task_type="CAUSAL_LM"
    )
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**json.loads(shape)))
        sizes = [p.numel() for p in model.parameters()]
        wrapped = get_peft_model(model, lora)
    n_lora = sum(p.numel() for n, p in wrapped.named_parameters() if ".lora_" in n)
    return Counts(sum(sizes), n_lora, max(sizes))


def _shape(path: str) -> PretrainedConfig:
    """config.json of a model, from its folder or the table; else from the hub."""
    folder = POCKET_FOLDER if path == "pocket" else Path(path).expanduser()
    if path == "smollm2" and (smollm2_folder() / "config.json").exists():
        folder = smollm2_folder()
    if (folder / "config.json").is_file():
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return AutoConfig.for_model(**values)
    if path in SHAPES:
        return AutoConfig.for_model(**SHAPES[path])
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"model.path: the shape of {path!r} is not known here and cannot be had: {reason}"
        ) from None
