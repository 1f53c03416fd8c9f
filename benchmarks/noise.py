"""How much noisy rewards hurt each method on the pocket preset: rewards flipped with probability p.

    python benchmarks/noise.py                     # bridge, grpo, sft; p = 0, 0.2, 0.4; 3 seeds
    python benchmarks/noise.py --quick             # a smoke test in a minute; says nothing
    python benchmarks/knights.py --out runs/knights         # a model that knows a little; extra gym
    python benchmarks/noise.py --task knights --model runs/knights

A training reward r becomes 1 − r with probability p (`reward_flip` [paper: p = 0.2]); evaluations
are never flipped. `sft` sees no reward: its runs are the same for every p and are done once a seed.
Each method has the learning rate that was best for it in the trials of methods.py (`RATES`). Runs
with one seed share prompts, demonstrations and rollout noise, whatever p is; the differences to
p = 0 are paired by seed.

Each finished run leaves a JSON file under --out; started again, the script goes on from there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

METHODS = ("bridge", "grpo", "sft")
FLIPS = (0.0, 0.2, 0.4)
RATES = {"bridge": (1e-4, 5e-4), "grpo": (2e-4, 5e-4), "sft": (2e-4, 5e-4)}
"""Learning rates of θ and w: results/methods.md; the preset's for other methods."""
PROBES_OFF = {
    "alignment_every": 0,
    "shared_gain_every": 0,
    "paired_gain_every": 0,
    "token_views_every": 0,
    "coordinator_every": 0,
    "evaluate_every": 0,
}
KNIGHTS = {
    "kind": "gym",
    "gym_name": "knights_knaves",
    "gym_settings": {"n_people": 2},
    "gym_train": 512,
    "gym_validation": 128,
    "gym_demonstrations": 256,
}


@dataclass(frozen=True)
class Job:
    """One run."""

    method: str
    flip: float
    seed: int
    steps: int
    prompts: int
    rollouts: int
    problems: int
    faster: float
    task: str
    model: str

    @property
    def name(self) -> str:
        """Name of its result file: everything the result depends on."""
        model = Path(self.model).name
        return (
            f"{self.task}-{model}-{self.method}-p{self.flip:g}-seed{self.seed}"
            f"-{self.steps}x{self.prompts}x{self.rollouts}x{self.faster:g}-{self.problems}"
        )


@dataclass(frozen=True)
class Outcome:
    """What a run reached: shares in [0, 1]."""

    accuracy: float
    """Greedy, on the held-out problems."""
    hard_accuracy: float | None
    """Greedy, on longer problems; None where the task has none."""
    true_reward: float | None
    """Mean unflipped reward of the last five steps; None without rollouts."""


def settings(job: Job) -> dict[str, Any]:
    """What differs from the pocket preset."""
    changes: dict[str, Any] = {
        "method": job.method,
        "seed": job.seed,
        "reward_flip": job.flip,
        "path": job.model,
        "prompts_per_step": job.prompts,
        "group_size": job.rollouts,
        "snapshot_every": max(1, job.steps),
        "keep_last": 1,
        "keep_every": 0,
        **PROBES_OFF,
    }
    if job.method in RATES:
        base, coordinator = RATES[job.method]
        changes |= {"base_lr": job.faster * base, "coordinator_lr": job.faster * coordinator}
    if job.task == "knights":
        sizes = {"max_new_tokens": 160, "evaluation_max_new_tokens": 160}
        return {"task": {**KNIGHTS, "gym_validation": job.problems}, **sizes, **changes}
    return {"n_validation": job.problems, "n_hard": job.problems, **changes}


def execute(job: Job, out: Path) -> Outcome:
    """Do a run, or read what it left."""
    file = out / f"{job.name}.json"
    if file.exists():
        return Outcome(**json.loads(file.read_text(encoding="utf-8")))
    from workbench import RunConfig, Session  # --help needs no torch

    run_dir = out / "runs" / job.name
    shutil.rmtree(run_dir, ignore_errors=True)  # left by an interrupted run
    with Session(RunConfig.preset("pocket").with_changes(**settings(job)), run_dir) as session:
        while session.step_number < job.steps:
            session.step()
        metrics = session.frame("metrics")
        rewards = metrics["reward/correct"].tail(5) if "reward/correct" in metrics else None
        outcome = Outcome(
            session.evaluate("validation"),
            session.evaluate("hard") if session.problems("hard") else None,
            None if rewards is None else float(rewards.mean()),
        )
    part = file.with_suffix(".part")
    part.write_text(json.dumps(asdict(outcome), indent=1), encoding="utf-8")
    part.replace(file)
    shutil.rmtree(run_dir)
    return outcome


def table(
    start: Outcome, outcomes: dict[tuple[str, float, int], Outcome], flips: Sequence[float]
) -> str:
    """The start, then a line a method and p: per cent, mean ± sd over seeds.

    The last column is paired by seed.
    """
    lines = [
        "| method | p | accuracy | harder problems | true reward, last 5 steps | against p = 0 |",
        "|---|---|---|---|---|---|",
        f"| start | – | {_spread([start.accuracy])} | {_spread([start.hard_accuracy])} | – | |",
    ]
    seeds = sorted({seed for _, _, seed in outcomes})
    for method in dict.fromkeys(method for method, _, _ in outcomes):
        for flip in flips:
            found = [outcomes[method, flip, seed] for seed in seeds]
            clean = [outcomes[method, flips[0], seed] for seed in seeds]
            lost = [100 * (a.accuracy - b.accuracy) for a, b in zip(found, clean, strict=True)]
            cells = [
                _spread([o.accuracy for o in found]),
                _spread([o.hard_accuracy for o in found]),
                _spread([o.true_reward for o in found]),
                f"{statistics.mean(lost):+.1f}" if flip != flips[0] else "",
            ]
            lines.append(f"| `{method}` | {flip:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    if not known:
        return "–"
    sd = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.1f}{sd}"


def main() -> None:
    """Do what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--flips", nargs="+", type=float, default=FLIPS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--prompts", type=int, default=16, help="RL prompts a step")
    parser.add_argument("--rollouts", type=int, default=8, help="rollouts of each prompt")
    parser.add_argument("--faster", type=float, default=1.0, help="times RATES, in fewer steps")
    parser.add_argument("--problems", type=int, default=256, help="held-out problems of each split")
    parser.add_argument("--task", choices=("arithmetic", "knights"), default="arithmetic")
    parser.add_argument("--model", default="pocket", help="as model.path")
    parser.add_argument("--quick", action="store_true", help="2 steps, 8 problems, 1 seed")
    parser.add_argument("--out", type=Path, default=Path("runs/noise"))
    options = parser.parse_args()
    if options.quick:
        options.steps, options.problems, options.seeds = 2, 8, 1
    options.out.mkdir(parents=True, exist_ok=True)

    def outcome(method: str, flip: float, seed: int, steps: int) -> Outcome:
        return execute(
            Job(
                method, flip, seed, steps, options.prompts, options.rollouts,
                options.problems, options.faster, options.task, options.model,
            ),
            options.out,
        )  # fmt: skip

    start = outcome("sft", 0.0, 0, 0)
    outcomes = {}
    with tqdm(total=options.seeds * len(options.methods) * len(options.flips), unit="run") as bar:
        for seed in range(options.seeds):
            for method, flip in product(options.methods, options.flips):
                felt = 0.0 if method == "sft" else flip  # it sees no reward
                outcomes[method, flip, seed] = outcome(method, felt, seed, options.steps)
                bar.update()
            print(table(start, outcomes, options.flips), flush=True)  # so far


if __name__ == "__main__":
    main()
