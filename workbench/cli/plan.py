"""`python -m workbench plan`: what memory a run will take, before anything is loaded."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch is imported where it is needed, so that --help is quick
    from workbench.config import RunConfig
    from workbench.plan import MemoryPlan

HELP = "what memory a run will take, part by part, before anything is loaded"
ROOM = 0.9
"""Share of a memory that a plan may take: allocators, kernels and the system need some."""
USUAL_GPU = 80.0
"""GB of the GPU that is planned for where there is none."""


def add(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser("plan", help=HELP, description=HELP)
    command.set_defaults(command=run)
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("--preset", help="named settings")
    which.add_argument("--config", metavar="FILE", help="a TOML file with settings")
    command.add_argument("--method", help="another method than the config's")
    command.add_argument(
        "--gpu",
        type=_gigabytes,
        metavar="GB",
        help="a GPU to plan for (default: this machine's, or 80 where it has none)",
    )


def _gigabytes(text: str) -> float:
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of GB above 0 (got {text!r})")
    return size


def run(options: argparse.Namespace) -> int:
    """Print the plan, and whether it fits this machine."""
    from workbench.config import RunConfig

    changes = {"method": options.method} if options.method else {}
    if options.config:
        config = RunConfig.load(options.config).with_changes(**changes)
    else:
        config = RunConfig.preset(options.preset, **changes)
    from workbench.plan import memory_plan

    plan = memory_plan(config)
    print(plan.table())
    memories = machine(config, plan)
    if options.gpu or not any(memory.is_gpu for memory in memories):
        size = options.gpu or USUAL_GPU
        planned_for = Memory(f"a GPU of {size:g} GB", int(size * 1e9), plan.device_bytes, True)
        memories.insert(0, planned_for)
    for memory in memories:
        print(f"  {memory}")
    return 0


def check(config: RunConfig, as_json: bool = False) -> int:
    """Print whether a run fits this machine; the exit code: 0 yes, 1 just about, 2 no."""
    from workbench.plan import memory_plan

    memories = machine(config, memory_plan(config))
    severity = max(memory.severity for memory in memories)
    if as_json:
        print(json.dumps({"exit_code": severity, "memories": [asdict(m) for m in memories]}))
        return severity
    print(f"{config.method} on {config.model.path}, before anything is loaded:")
    for memory in memories:
        print(f"  {memory}")
    if severity:
        print("  change: micro_batch_tokens, sampling_batch, gradient_checkpointing, compute_dtype")
        print("  or offload; python -m workbench plan says what takes it, part by part")
    return severity


@dataclass(frozen=True)
class Memory:
    """One memory of a machine, and what a run needs of it."""

    name: str
    there: int
    """Bytes."""
    needed: int
    """Bytes."""
    is_gpu: bool

    @property
    def severity(self) -> int:
        """0: fits with a tenth left for what the plan does not count; 1: without; 2: does not."""
        return (self.needed > ROOM * self.there) + (self.needed > self.there)

    def __str__(self) -> str:
        from workbench.plan import gib

        verdict = ("fits", "does not fit with a tenth left", "does not fit")[self.severity]
        return f"{self.name}: {gib(self.there)}, {gib(self.needed)} needed: {verdict}"


def machine(config: RunConfig, plan: MemoryPlan) -> list[Memory]:
    """The memories of this machine; a CPU by itself has to hold everything.

    Raises ConfigError where the config's device is not there.
    """
    import torch

    from workbench.models import resolve_device

    found = resolve_device(config.model.device)
    cpu = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if found.type != "cuda":
        needed = plan.device_bytes + plan.cpu_bytes
        return [Memory("memory of this machine, without a GPU", cpu, needed, False)]
    there = torch.cuda.get_device_properties(found).total_memory
    return [
        Memory(torch.cuda.get_device_name(found), there, plan.device_bytes, True),
        Memory("memory of this machine", cpu, plan.cpu_bytes, False),
    ]
