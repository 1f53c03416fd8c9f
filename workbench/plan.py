"""What memory a run will take, part by part, before anything is loaded.

    plan = memory_plan(RunConfig.preset("qwen2.5-3b"))
    print(plan.table())

The model is built without memory (torch's meta device) from its config.json, or for the models of
the presets from the shapes below, so this works offline. Weights, gradients, moments and the KV
cache are exact counts. Activations and logits are formulas of a Llama-like block, kept within a
fifth of what the pocket model is measured to keep (tests/test_plan.py). [ours]

    N parameters of the model, L of the coordinator, h hidden size, f width of the MLP, q and k
    widths of all query and of all key heads, r rank, V vocabulary, n layers, M micro_batch_tokens,
    S sequences generated at once, T their length; a computed number has 4 bytes, or 2 in bf16
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from workbench.config import ConfigError, RunConfig, due
from workbench.models import POCKET_FOLDER, smollm2_folder
from workbench.training.gradients import RL_BLOCKS, SFT_BLOCKS
from workbench.training.methods import make_method

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


@dataclass(frozen=True)
class Item:
    """One part of the memory."""

    name: str
    bytes: int
    where: str
    """'device', or 'cpu' for what waits there."""
    how: str
    """The formula."""
    lasting: bool
    """There all the time; else only in one phase of a step."""


@dataclass(frozen=True)
class MemoryPlan:
    """The parts, and what they come to."""

    model: str
    n_parameters: int
    n_coordinator: int
    items: tuple[Item, ...]

    @property
    def device_bytes(self) -> int:
        """The most at once on the device: what lasts, and the larger of sampling and gradients."""
        here = [item for item in self.items if item.where == "device"]
        lasting = sum(item.bytes for item in here if item.lasting)
        sampling = sum(i.bytes for i in here if not i.lasting and i.name.startswith("sampling"))
        learning = sum(i.bytes for i in here if not i.lasting and not i.name.startswith("sampling"))
        return lasting + max(sampling, learning)

    @property
    def cpu_bytes(self) -> int:
        """What waits on the CPU."""
        return sum(item.bytes for item in self.items if item.where == "cpu")

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
        if self.cpu_bytes:
            lines.append(f"  {'waiting':<{width}}  {gib(self.cpu_bytes):>10}  on the CPU")
        return "\n".join(lines)


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.2f} MiB"


def memory_plan(config: RunConfig) -> MemoryPlan:
    """The plan of a run. Raises ConfigError where the model's shape cannot be known."""
    shape = _shape(config.model.path)
    n_base, n_lora = count_parameters(shape, config)
    method, c = make_method(config), config
    tracked = method.baseline or c.training.track_baseline
    items: list[Item] = []

    def add(name: str, size: float, how: str, lasting: bool = True, where: str = "device") -> None:
        if size:
            items.append(Item(name, int(size), where, how, lasting))

    away = {part: "cpu" if part in c.model.offload else "device" for part in ("baseline",)}
    add("θ", 4 * n_base, "4·N")
    if tracked:
        add("θ̂", 4 * n_base, "4·N", where=away["baseline"])
    if (method.rollouts or tracked) and c.model.reference == "start":
        size = 2 if c.model.reference_dtype == "bfloat16" else 4
        where = "cpu" if "reference" in c.model.offload else "device"
        add("reference", size * n_base, f"{size}·N", where=where)
    add("w", 4 * n_lora, "4·L")
    add("Adam of θ", 8 * n_base, "8·N")
    if method.own_sft:
        add("Adam of SFT steps", 8 * n_base, "8·N")
    if method.baseline:
        add("Adam of θ̂", 8 * n_base, "8·N", where=away["baseline"])
    if method.coordinator:
        add("Adam of w", 8 * n_lora, "8·L")

    n_all = n_base + (n_lora if method.coordinator else 0)
    rounds = sum((method.rollouts, method.demonstrations, tracked))
    add("gradients", 4 * rounds * n_all, f"{rounds} objectives · 4·(N+L)", lasting=False)
    add("gradient of a micro-batch", 4 * n_all, "4·(N+L)", lasting=False)
    if method.demonstrations and method.rollouts and due(c.probes.alignment_every, 1):
        kept = RL_BLOCKS - 1 + SFT_BLOCKS - 1
        add("gradients of blocks", 2 * kept * n_all, f"{kept} · 2·(N+L)", lasting=False)
    part_waits = [part for part in c.model.offload if part != "reference" or method.rollouts]
    if part_waits:
        add("the part brought back", 4 * n_base, "4·N, one at a time", lasting=False)

    wide = c.model.compute_dtype == "bfloat16"
    b = 2 if wide else 4
    m = c.training.micro_batch_tokens
    if wide:
        add("weights in bf16", 2 * (n_base + n_lora), "2·(N+L)", lasting=False)
    per_layer = layer_bytes(shape, c, b)
    layers = shape.num_hidden_layers
    if c.model.gradient_checkpointing:
        size = 4 * shape.hidden_size * (layers + 3) + per_layer
        add("activations", m * size, "M·(4h·(n+3) + one layer's)", lasting=False)
    else:
        cast = " + 2·(10h+q+f)" if wide else ""
        size = layers * per_layer + 12 * shape.hidden_size
        how = f"M·(n·(4·6h + {b}·(5q+4f+7r){cast}) + 12h)"
        add("activations", m * size, how, lasting=False)
    add("logits", 5 * 4 * m * shape.vocab_size, "5 copies · 4·M·V", lasting=False)

    if method.rollouts or tracked:
        longest = (c.task.max_prompt_tokens or PROMPT_TOKENS) + c.sampling.max_new_tokens
        rollouts = c.training.prompts_per_step * c.training.group_size
        s = min(c.sampling.sampling_batch, rollouts)
        size = kv_bytes(shape, s, longest, b)
        add("sampling: KV cache", size, f"2·{b}·n·k·S·T, S={s}, T={longest}", lasting=False)
        # float32 logits, scaled, noisy, and three int64 arrays that the noise is made of
        add("sampling: logits and noise", 36 * s * shape.vocab_size, "36·S·V", lasting=False)
    return MemoryPlan(c.model.path, n_base, n_lora, tuple(items))


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


def count_parameters(shape: PretrainedConfig, config: RunConfig) -> tuple[int, int]:
    """(N, L): parameters of the model and of the coordinator, counted on the meta device."""
    lora = LoraConfig(
        r=config.model.lora_rank,
        target_modules=list(config.model.lora_targets) or "all-linear",
        task_type="CAUSAL_LM",
    )
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(shape)
        n_base = sum(p.numel() for p in model.parameters())
        wrapped = get_peft_model(model, lora)
    return n_base, sum(p.numel() for n, p in wrapped.named_parameters() if ".lora_" in n)


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
