"""Every method on the pocket task: clean and flawed demonstrations, right and flipped rewards.

    python benchmarks/methods.py --methods all --case flawed25
    python benchmarks/methods.py --methods all --case clean --tuned-in flawed25
    python benchmarks/methods.py --quick                  # a smoke test; says nothing

All the work is done by `workbench.compare`: equal steps, as many learning-rate trials for each
method on another seed and task, accuracies on whole held-out splits. This script only says what is
compared. Probes are off. Each finished run stays under --out; started again, it goes on from there,
also with more seeds. --tuned-in takes the learning rates from the trials of another case.
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


def short(steps: int, prompts: int) -> dict[str, Any]:
    """Schedules made for some hundred steps and 128 prompts, for runs of these."""
    return {
        "chord_steps": steps,
        "prefix_steps": steps,
        "uft_hint_steps": round(0.6 * steps),  # 300 of 500
        "cold_start_steps": round(steps / 3),
        "relift_buffer": prompts,  # 128 of 128
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
    parser.add_argument("--trials", type=int, help="learning-rate trials of a method (3)")
    parser.add_argument(
        "--prompts", type=int, default=16, help="prompts of each step, and demonstrations (16)"
    )
    parser.add_argument(
        "--tuned-in", choices=CASES, metavar="CASE", help="take the rates of this case's trials"
    )
    parser.add_argument(
        "--problems", type=int, help="held-out problems (256); half as many longer ones"
    )
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


def comparison(args: argparse.Namespace, case: str) -> Comparison:
    """What is compared in one case."""
    base = RunConfig.preset(
        "pocket",
        device="cpu",
        base_lr=2e-4,
        sft_lr=2e-4,
        prompts_per_step=args.prompts,
        demonstrations_per_step=args.prompts,
        n_validation=args.problems,
        n_hard=args.problems // 2,
        snapshot_every=max(args.steps, 1),
        keep_last=1,
        keep_every=0,
        **CASES[case],
        **short(args.steps, args.prompts),
        **PROBES_OFF,
    )
    tuned_in = None
    if args.tuned_in and args.tuned_in != case:
        tuned_in = comparison(args, args.tuned_in)
    return Comparison(
        tuple(args.methods),
        tuple(range(args.seeds)),
        base,
        args.steps,
        args.out / case,
        sweep=0 if tuned_in else args.trials,
        tuned_in=tuned_in,
    )


def main() -> None:
    """Compare and print the table."""
    args = parse()
    asked = comparison(args, args.case)
    compare(asked, args.jobs)
    print((asked.run / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
