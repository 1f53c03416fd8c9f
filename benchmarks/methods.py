"""Every method on the pocket task: clean and flawed demonstrations, right and flipped rewards.

    python benchmarks/methods.py                          # four methods, the README's table
    python benchmarks/methods.py --methods all --seeds 5 --case flawed50
    python benchmarks/methods.py --quick                  # a smoke test; says nothing

All the work is done by `workbench.compare`: equal steps, as many learning-rate trials for each
method on another seed and task, accuracies on whole held-out splits. This script only says what is
compared. Probes are off. Each finished run stays under --out; started again, it goes on from there.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from workbench.comparing.jobs import Comparison
from workbench.comparing.running import compare
from workbench.config import MethodName, RunConfig

METHODS = ("sft", "grpo", "naive_mix", "bridge")
FLAWS = ("wrong_step", "wrong_answer", "detour", "other_task")
CASES: dict[str, dict[str, Any]] = {
    "preset": {},  # a quarter of the demonstrations is flawed
    "clean": {"flaws": dict.fromkeys(FLAWS, 0.0)},
    "flawed25": {"flaws": dict.fromkeys(FLAWS, 0.0625)},
    "flawed50": {"flaws": dict.fromkeys(FLAWS, 0.125)},
    "flipped": {"flaws": dict.fromkeys(FLAWS, 0.0), "reward_flip": 0.2},
}
SHORT = {  # schedules made for some hundred steps, for a run of 60
    "chord_steps": 60,
    "prefix_steps": 60,
    "uft_hint_steps": 36,
    "relift_buffer": 32,
    "sft_lr": 1e-4,
}
PROBES_OFF = {
    "alignment_every": 0,
    "shared_gain_every": 0,
    "paired_gain_every": 0,
    "token_views_every": 0,
    "coordinator_every": 0,
    "evaluate_every": 0,
}


def parse() -> argparse.Namespace:
    """The command line; --quick shrinks whatever was not given."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-methods"))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="names, or all")
    parser.add_argument("--case", choices=CASES, default="preset")
    parser.add_argument("--steps", type=int, help="steps of each run (60)")
    parser.add_argument("--seeds", type=int, help="reported seeds (3)")
    parser.add_argument("--trials", type=int, help="learning-rate trials of each method (3)")
    parser.add_argument("--prompts", type=int, default=16, help="prompts of each step (16)")
    parser.add_argument("--problems", type=int, help="held-out problems of each split (256)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--quick", action="store_true", help="2 steps, 1 trial, 1 seed")
    args = parser.parse_args()
    quick = {"steps": 2, "seeds": 1, "trials": 1, "problems": 4}
    full = {"steps": 60, "seeds": 3, "trials": 3, "problems": 256}
    for name, value in (quick if args.quick else full).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.methods == ["all"]:
        args.methods = list(get_args(MethodName))
    return args


def main() -> None:
    """Compare and print the table."""
    args = parse()
    case: dict[str, Any] = dict(CASES[args.case])
    base = RunConfig.preset(
        "pocket",
        base_lr=1e-4,
        prompts_per_step=args.prompts,
        n_validation=args.problems,
        n_hard=args.problems,
        snapshot_every=max(args.steps, 1),
        keep_last=1,
        keep_every=0,
        **case,
        **SHORT,
        **PROBES_OFF,
    )
    comparison = Comparison(
        tuple(args.methods),
        tuple(range(args.seeds)),
        base,
        args.steps,
        args.out / args.case,
        sweep=args.trials,
    )
    compare(comparison, args.jobs)
    print((comparison.run / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
