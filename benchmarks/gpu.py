"""Steps of the presets on a GPU: seconds by phase, tokens a second, memory against the plan.

    python benchmarks/gpu.py                              # smollm2, float32 and bf16
    python benchmarks/gpu.py qwen2.5-3b-grpo qwen2.5-1.5b-bridge
    python benchmarks/gpu.py --device cpu smollm2-bf16    # the same on the CPU, to compare

Each case runs in a process of its own. The smollm2 cases train the real model (`python -m
workbench fetch smollm2` brings it). The others have the published shape of their model and random
weights, for memory and seconds do not depend on what the weights are: their texts do not end before
`max_new_tokens`, so they are the longest there can be. Their settings are those of the paper's
preset, but with the embedded arithmetic task, and with fewer and shorter rollouts.

Steps alone are made: no run folder, no snapshots. Phases are said as they begin. Memory on the
device is the most that torch had allocated at once, without the CUDA context and the allocator's
gaps; on the CPU it is the largest resident size of the process, libraries included.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

from workbench.plan import SHAPES, gib

PHASES = ("rollouts", "rewards", "gradients", "probes", "update")
SNAPSHOT = "a snapshot being written"
FEWER: dict[str, Any] = {
    "kind": "arithmetic",
    "rewards": [],
    "max_prompt_tokens": 64,
    "max_solution_tokens": 192,
    "prompts_per_step": 8,
    "group_size": 8,
    "demonstrations_per_step": 16,
    "max_new_tokens": 256,
    "evaluate_every": 0,
}
"""A step of a paper's preset in less than a minute: 64 texts of 256 tokens, not 320 of 3000."""
QWEN_1_5B = {
    **SHAPES["Qwen/Qwen2.5-3B"],
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
}
"""Qwen2.5-1.5B's, whose BRIDGE step fits a machine with 128 GB beside the GPU; 3 B needs 200."""


@dataclass(frozen=True)
class Case:
    """What is run."""

    preset: str
    method: str
    changes: dict[str, Any]
    shape: dict[str, Any] | None = None
    """Random weights of this shape in place of the preset's model."""


SMOLLM2 = {"evaluate_every": 0}
CASES = {
    "smollm2-float32": Case("smollm2", "bridge", SMOLLM2),
    "smollm2-bf16": Case("smollm2", "bridge", {**SMOLLM2, "compute_dtype": "bfloat16"}),
    "qwen2.5-3b-grpo": Case("qwen2.5-3b", "grpo", FEWER, SHAPES["Qwen/Qwen2.5-3B"]),
    "qwen2.5-1.5b-bridge": Case(
        "qwen2.5-3b", "bridge", {**FEWER, "offload": ["reference", "baseline"]}, QWEN_1_5B
    ),
    "qwen2.5-1.5b-bridge-offload": Case("qwen2.5-3b", "bridge", FEWER, QWEN_1_5B),
}


@dataclass(frozen=True)
class Outcome:
    """What a case took, in bytes and in mean seconds of the steps after the first."""

    name: str
    device: str
    steps: int
    seconds: dict[str, float]
    tokens: float
    """Generated in a step."""
    device_bytes: int
    device_planned: int
    cpu_bytes: int
    cpu_planned: int
    library: str

    def row(self) -> str:
        """A line of the table."""
        phases = " | ".join(f"{self.seconds[name]:.2f}" for name in PHASES)
        total = f"{sum(self.seconds.values()):.2f}"
        rate = f"{self.tokens / self.seconds['rollouts']:,.0f}"
        share = self.device_bytes / self.device_planned
        held = f"{gib(self.device_bytes)} of {gib(self.device_planned)} ({share:.2f})"
        if not self.device_bytes:
            held = "–"
        beside = f"{gib(self.cpu_bytes)} of {gib(self.cpu_planned)}"
        return f"| `{self.name}` | {phases} | {total} | {rate} | {held} | {beside} |"


def save_random_weights(shape: dict[str, Any], folder: Path, device: str) -> None:
    """A model of that shape in bf16, and the pocket model's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from workbench.models import POCKET_FOLDER

    tokenizer = AutoTokenizer.from_pretrained(POCKET_FOLDER)
    config = AutoConfig.for_model(
        **shape, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def measure(name: str, device: str, n_steps: int, folder: Path) -> Outcome:
    """Make the steps of a case. In a process of its own, for both peaks are the process's."""
    import torch

    from workbench import RunConfig
    from workbench.engine import new_policy, trainable_task
    from workbench.plan import memory_plan
    from workbench.training.trainer import Trainer

    case = CASES[name]
    config = RunConfig.preset(case.preset, method=case.method, device=device, **case.changes)
    if case.shape is not None:
        config = config.with_changes(path=str(folder))
    plan = memory_plan(config)
    started = perf_counter()
    policy = new_policy(config)
    trainer = Trainer(config, policy, trainable_task(config, policy))
    print(f"{name}: model and task there after {perf_counter() - started:.0f} s", flush=True)
    steps = []
    for number in range(1, n_steps + 1):
        steps.append(trainer.step(number, lambda phase: print(f"  {phase}", end="", flush=True)))
        print(f"  step {number}: {sum(steps[-1].metrics[f'seconds/{p}'] for p in PHASES):.1f} s")
    counted = steps[1:] or steps
    on_gpu = policy.device.type == "cuda"
    seconds = {phase: fmean(s.metrics[f"seconds/{phase}"] for s in counted) for phase in PHASES}
    on_cpu = sum(i.bytes for i in plan.items if i.where == "cpu" and i.name == SNAPSHOT)
    return Outcome(
        name,
        torch.cuda.get_device_name(policy.device) if on_gpu else "CPU",
        n_steps,
        seconds,
        fmean(sum(len(r.token_ids) for r in s.rollouts if r.purpose == "train") for s in counted),
        torch.cuda.max_memory_allocated(policy.device) if on_gpu else 0,
        plan.device_bytes,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        plan.cpu_bytes - on_cpu + (0 if on_gpu else plan.device_bytes),
        f"torch {torch.__version__}",
    )


def in_process(work: Any, *arguments: Any) -> Any:
    """Call in a fresh process: what it allocates is gone afterwards."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def table(outcomes: list[Outcome]) -> str:
    """The outcomes as Markdown."""
    lines = [
        f"| case | {' | '.join(PHASES)} | step | tokens/s | device memory, of planned | CPU |",
        "|---" * (len(PHASES) + 5) + "|",
        *(outcome.row() for outcome in outcomes),
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print; --out keeps what was measured, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help=f"some of {', '.join(CASES)}")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--scratch", type=Path, help="a folder for random weights")
    parser.add_argument("--out", type=Path, help="a file for the outcomes")
    options = parser.parse_args()
    names = options.cases or [name for name in CASES if name.startswith("smollm2")]
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"no case {unknown[0]!r}; there are {', '.join(CASES)}")
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        for name in names:
            folder = Path(scratch, name)
            if (shape := CASES[name].shape) is not None:
                in_process(save_random_weights, shape, folder, options.device)
            outcomes.append(in_process(measure, name, options.device, options.steps, folder))
            print(table(outcomes[-1:]), flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            if options.out:
                text = json.dumps([asdict(outcome) for outcome in outcomes], indent=1)
                options.out.write_text(text + "\n", encoding="utf-8")
    print(table(outcomes))


if __name__ == "__main__":
    main()
