"""`python -m workbench plan`: what memory a run will take, before anything is loaded."""

from __future__ import annotations

import argparse
import os
from typing import Any

HELP = "what memory a run will take, part by part, before anything is loaded"


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
        type=float,
        default=80.0,
        metavar="GB",
        help="a GPU to plan for, where this machine has none (default: 80)",
    )


def run(options: argparse.Namespace) -> int:
    """Print the plan, and whether it fits this machine."""
    from workbench.config import RunConfig

    changes = {"method": options.method} if options.method else {}
    if options.config:
        config = RunConfig.load(options.config).with_changes(**changes)
    else:
        config = RunConfig.preset(options.preset, **changes)
    from workbench.plan import gib, memory_plan

    plan = memory_plan(config)
    print(plan.table())
    machine = _machine(config.model.device, plan.device_bytes, plan.cpu_bytes, options.gpu)
    for name, there, needed in machine:
        verdict = "fits" if needed <= 0.9 * there else "does not fit"
        print(f"  {name}: {gib(there)}, {gib(needed)} needed: {verdict} (10 % left for the rest)")
    return 0


def _machine(device: str, on_device: int, on_cpu: int, gpu: float) -> list[tuple[str, int, int]]:
    """(name, bytes there, bytes needed) of each memory of this machine, and of a GPU of `gpu` GB.

    The latter where the machine has none; its CPU then has to hold both.
    """
    import torch

    from workbench.models import resolve_device

    found = resolve_device(device)
    cpu = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if found.type != "cuda":
        return [
            (f"a GPU of {gpu:g} GB", int(gpu * 1e9), on_device),
            ("memory of this machine, without a GPU", cpu, on_device + on_cpu),
        ]
    name = torch.cuda.get_device_name(found)
    return [
        (name, torch.cuda.get_device_properties(found).total_memory, on_device),
        ("memory of this machine", cpu, on_cpu),
    ]
