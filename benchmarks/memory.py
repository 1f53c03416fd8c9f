"""What a backward pass holds at the real size of a preset's model, beside what the plan says.

    python benchmarks/memory.py                            # the paper's three presets, some minutes
    python benchmarks/memory.py --presets smollm2

No GPU and no memory are needed: tensors are torch's fake ones, which have a shape, a type and a
life but no numbers. The model is built from its published shape with its coordinator; then two
micro-batches go forward and backward, as a step does it, under the preset's autocast, checkpointing
and offloading, and the most that was alive at once is counted. Once as one text of the longest kind
and once as several short ones, in which nearly all tokens are learned from.

What this cannot see: a GPU's own kernels and their workspaces, the allocator's gaps, the CUDA
context. That is what the tenth is for that the plan leaves free.
"""

from __future__ import annotations

import argparse
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from workbench.config import RunConfig
from workbench.placement import ForwardSettings
from workbench.plan import _shape, gib, memory_plan
from workbench.policy import _split
from workbench.sampling import TokenBatch, completion_logits, token_entropy, token_logprobs
from workbench.training.gradients import Keep, _Sum

PARTS = (
    "the part in place",
    "w",
    "weights in bf16",
    "activations",
    "logits",
    "the gradient being summed",
    "gradient of a tensor",
)
"""Items of the plan that such a pass is made of."""
ELSEWHERE = torch.device("meta")
"""Stands for the CPU of a machine with a GPU: what is there is not counted."""


class MostAlive(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self,
        operation: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do the operation and count what it made."""
        made = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.device != ELSEWHERE:
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, size: int) -> None:
        self.now -= size


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    preset: str
    texts: str
    measured: int
    planned: int


def model_without_memory(config: RunConfig) -> PeftModel:
    """The preset's model and its coordinator on the meta device, with its forward settings."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = AutoModelForCausalLM.from_config(_shape(config.model.path)).eval()
        ForwardSettings(plain, config.model, torch.device("cpu"))
        targets = list(config.model.lora_targets) or "all-linear"
        lora = LoraConfig(r=config.model.lora_rank, target_modules=targets, task_type="CAUSAL_LM")
        wrapped = get_peft_model(plain, lora)
    wrapped.requires_grad_(True)
    return wrapped.eval()  # type: ignore[return-value]


def give_weights(model: nn.Module) -> None:
    """Replace what is on the meta device by what counts; shared parameters stay shared."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) not in made:
                made[id(parameter)] = nn.Parameter(torch.empty(parameter.shape))
            module._parameters[name] = made[id(parameter)]
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def most_of_a_pass(config: RunConfig, n_texts: int, n_prompt: int, length: int) -> int:
    """Bytes alive at once in two micro-batches of texts of `length` tokens, weights included."""
    model, alive = model_without_memory(config), MostAlive()
    with FakeTensorMode(), alive:
        give_weights(model)
        base, coordinator = _split(model)
        ids = torch.ones(n_texts, length, dtype=torch.long)
        batch = TokenBatch(
            ids,
            None,  # type: ignore[arg-type]  # no padding, and fake tensors cannot be asked
            torch.arange(length).expand(n_texts, -1),
            ids[:, n_prompt:],
            torch.ones(n_texts, length - n_prompt),
            n_prompt,
        )
        away = ELSEWHERE if "gradient_sum" in config.model.offload else None
        total = _Sum(base, coordinator, False, Keep(away))
        alive.most = alive.now
        for _ in range(2):
            logits = completion_logits(model, batch)
            total.add(token_logprobs(logits, batch).sum())
            with torch.no_grad():
                token_entropy(logits)
            del logits
    return alive.most


def measure(preset: str) -> list[Row]:
    """The rows of one preset."""
    config = RunConfig.preset(preset)
    planned = sum(i.bytes for i in memory_plan(config).items if i.name in PARTS)
    if not config.model.offload:  # nothing is brought: θ and the sum have names of their own
        names = {"θ": 1.0, "gradients": 1 / 3}
        planned += sum(int(i.bytes * names.get(i.name, 0)) for i in memory_plan(config).items)
    m, new = config.training.micro_batch_tokens, config.sampling.max_new_tokens
    longest = min(m, (config.task.max_prompt_tokens or 512) + new)
    prompt = max(1, longest - new)
    return [
        Row(preset, f"1 × {longest}", most_of_a_pass(config, 1, prompt, longest), planned),
        Row(preset, f"8 × {m // 8}", most_of_a_pass(config, 8, 8, m // 8), planned),
    ]


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = ["| preset | texts × tokens | measured | planned | share |", "|---|---|---|---|---|"]
    lines += [
        f"| `{r.preset}` | {r.texts} | {gib(r.measured)} | {gib(r.planned)} "
        f"| {r.measured / r.planned:.2f} |"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print; --out keeps it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    presets = ["qwen2.5-3b", "llama-3.2-3b-instruct", "qwen3-8b-base"]
    parser.add_argument("--presets", nargs="+", default=presets)
    parser.add_argument("--out", type=Path, help="a file for the table")
    options = parser.parse_args()
    rows: list[Row] = []
    for preset in options.presets:
        rows += measure(preset)
    print(table(rows))
    if options.out:
        command = "python benchmarks/memory.py"
        head = "# What a backward pass holds, on fake tensors of the real size\n\n"
        text = f"{head}`{command}` made this table; what it measures is in its first lines.\n\n"
        options.out.write_text(text + table(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
