"""`python -m workbench compare`: its options, and from them a Comparison."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.comparing.jobs import Budget


def add_compare(commands: Any, setting: Any, count: Any) -> None:
    """Add the command; `setting` and `count` parse KEY=VALUE and a number of steps."""
    parser = commands.add_parser("compare", help="run several methods and write one table of them")
    parser.set_defaults(command=run_compare)
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--preset", help="named settings all runs share (default: pocket)")
    start.add_argument("--config", metavar="FILE", help="a TOML file with settings instead")
    parser.add_argument("--methods", required=True, help="names, with commas: bridge,grpo,luffy")
    parser.add_argument("--seeds", default="0,1,2", help="seeds, with commas (default: 0,1,2)")
    parser.add_argument("--steps", type=count, default=60, help="steps of each run (default: 60)")
    parser.add_argument("--run", metavar="DIR", required=True, help="folder of runs and report")
    parser.add_argument("--jobs", type=count, default=1, help="runs at a time (default: 1)")
    parser.add_argument(
        "--budget",
        default="steps",
        metavar="KIND",
        help="what is equal: steps, tokens=AMOUNT (generated) or seconds=AMOUNT (of training); "
        "--steps is the most in any case",
    )
    parser.add_argument(
        "--sweep-lr", type=count, default=0, metavar="K", help="learning-rate trials of each method"
    )
    parser.add_argument("--target", type=float, help="accuracy to time, between 0 and 1")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", nargs="+", action="extend", type=setting, default=[],
        help="settings of all runs, by name",
    )  # fmt: skip


def parse_budget(text: str) -> Budget:
    """'steps', 'tokens=200000' or 'seconds=300'. Raises ConfigError."""
    from workbench.comparing.jobs import Budget
    from workbench.config import ConfigError

    if text == "steps":
        return Budget()
    kind, _, amount = text.partition("=")
    if kind in ("tokens", "seconds") and re.fullmatch(r"\d+(\.\d+)?", amount):
        return Budget("tokens" if kind == "tokens" else "seconds", float(amount))
    raise ConfigError(f"--budget: say steps, tokens=AMOUNT or seconds=AMOUNT (got {text!r})")


def run_compare(options: argparse.Namespace) -> int:
    """Carry the command out. Raises ConfigError, RunFolderError."""
    from workbench.comparing.jobs import Comparison
    from workbench.config import ConfigError, RunConfig

    changes = dict(options.set)
    if options.config:
        base = RunConfig.load(options.config).with_changes(**changes)
    else:
        base = RunConfig.preset(options.preset or "pocket", **changes)
    seeds = options.seeds.split(",")
    if not all(seed.strip().isdecimal() for seed in seeds):
        raise ConfigError(f"--seeds: whole numbers with commas between (got {options.seeds!r})")
    comparison = Comparison(
        tuple(name.strip() for name in options.methods.split(",")),
        tuple(int(seed) for seed in seeds),
        base,
        options.steps,
        Path(options.run),
        parse_budget(options.budget),
        options.sweep_lr,
        options.target,
    )
    for method in comparison.methods:
        base.with_changes(method=method)  # a bad name is said before any run
    from workbench.comparing.running import compare

    compare(comparison, options.jobs)
    print((comparison.run / "table.md").read_text(encoding="utf-8"))
    print(f"{comparison.run / 'report.html'} has the curves")
    return 0
