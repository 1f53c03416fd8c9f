"""Greedy accuracy of each method after the same number of steps on the pocket preset.

    python benchmarks/methods.py                   # the README's table
    python benchmarks/methods.py --jobs 2          # two runs at a time, half the cores each
    python benchmarks/methods.py --quick           # a smoke test in a few minutes; says nothing

How it is kept fair:

- Every method gets the same number of learning-rate trials, from the middle outwards. One
  rate is tuned where a method trains θ only; BRIDGE has two (θ and w) and no more trials for it.
- Trials use their own run seed AND their own task seed (other prompts, demonstrations and
  validation problems). The best mean greedy validation accuracy after a third, two thirds and
  all of the steps wins (the end alone would tie where methods saturate), the smaller rate on a tie.
- The winners then run on the reported seeds and the reported task, whose held-out problems chose
  nothing. Everything else is the preset's: λ, μ, group size, clip, KL.
- All methods take the same number of steps. A step of `sft` has no rollouts and BRIDGE makes one
  more backward pass, so seconds are printed beside the accuracies. Probes are off.

Each finished run leaves one JSON file under --out; started again, the script goes on from there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

METHODS = ("sft", "grpo", "naive_mix", "bridge")
LEARNING_RATES: dict[str, list[tuple[float, float]]] = {
    # (base_lr, coordinator_lr), from the middle outwards. The second is idle where w is.
    "sft": [(r, 0.0) for r in (1e-4, 5e-5, 2e-4, 2.5e-5, 4e-4, 1e-5, 8e-4, 5e-6)],
    "grpo": [(r, 0.0) for r in (1e-4, 5e-5, 2e-4, 2.5e-5, 4e-4, 1e-5, 8e-4, 5e-6)],
    "naive_mix": [(r, 0.0) for r in (1e-4, 5e-5, 2e-4, 2.5e-5, 4e-4, 1e-5, 8e-4, 5e-6)],
    "bridge": [
        (1e-4, 5e-4),
        (5e-5, 5e-4),
        (2e-4, 5e-4),
        (1e-4, 2e-3),
        (1e-4, 1e-4),
        (2.5e-5, 5e-4),
        (4e-4, 5e-4),
        (2e-4, 2e-3),
    ],
}
TRIAL_SEED = 1000  # run seed and task seed of the trials; reported runs use neither
PROBES_OFF = {
    "alignment_every": 0,
    "shared_gain_every": 0,
    "paired_gain_every": 0,
    "token_views_every": 0,
    "coordinator_every": 0,
    "evaluate_every": 0,
}


@dataclass(frozen=True)
class Job:
    """One run. `method` "base" takes no step: it is the model as shipped."""

    kind: str
    """trial, report or base."""
    method: str
    seed: int
    task_seed: int
    base_lr: float
    coordinator_lr: float
    steps: int
    problems: int
    """Held-out problems of each split."""

    @property
    def checkpoints(self) -> list[int]:
        """The steps after which accuracy is measured: a third, two thirds and all of them."""
        return sorted({round(self.steps * part / 3) for part in (1, 2, 3)})

    @property
    def name(self) -> str:
        """Name of its result file: everything the result depends on."""
        rates = f"{self.base_lr:g}-{self.coordinator_lr:g}"
        return (
            f"{self.kind}-{self.method}-{rates}-seed{self.seed}-task{self.task_seed}"
            f"-{self.steps}x{self.problems}"
        )


@dataclass(frozen=True)
class Result:
    """What one run reached: greedy accuracies in [0, 1] and the seconds its steps took."""

    job: Job
    accuracy: list[float]
    """After each of the job's checkpoints: problems with as many terms as the training problems."""
    hard_accuracy: list[float]
    """The same on problems with more terms."""
    seconds: float
    reward: list[float]
    """Mean training reward of each step; empty without rollouts."""


def execute(job: Job, out: str, keep_runs: bool) -> Result:
    """Do one run and write its result beside its run folder. Runs in a worker process."""
    from workbench import RunConfig, Session  # here: the parent needs no torch

    run_dir = Path(out) / "runs" / job.name
    shutil.rmtree(run_dir, ignore_errors=True)  # left by an interrupted run, which has no result
    config = RunConfig.preset(
        "pocket",
        method="sft" if job.method == "base" else job.method,
        seed=job.seed,
        task_seed=job.task_seed,
        n_validation=job.problems,
        n_hard=job.problems,
        base_lr=job.base_lr,
        coordinator_lr=job.coordinator_lr,
        snapshot_every=max(job.steps, 1),
        keep_last=1,
        keep_every=0,
        **PROBES_OFF,
    )
    with Session(config, run_dir=run_dir) as session:
        accuracy, hard_accuracy = [], []
        for checkpoint in job.checkpoints:
            while session.step_number < checkpoint:
                session.step()
            accuracy.append(session.evaluate("validation"))
            hard_accuracy.append(session.evaluate("hard"))
        metrics = session.frame("metrics")
        result = Result(
            job,
            accuracy=accuracy,
            hard_accuracy=hard_accuracy,
            seconds=float(metrics["seconds/total"].sum()) if job.steps else 0.0,
            reward=[float(r) for r in metrics["reward"]] if "reward" in metrics else [],
        )
    part = Path(out) / f"{job.name}.part"
    part.write_text(json.dumps(asdict(result), indent=1), encoding="utf-8")
    part.replace(Path(out) / f"{job.name}.json")
    if not keep_runs:
        shutil.rmtree(run_dir)
    return result


def read(path: Path) -> Result:
    """A result that an earlier run of this script wrote."""
    values = json.loads(path.read_text(encoding="utf-8"))
    return Result(**{**values, "job": Job(**values["job"])})


def run_all(jobs: Iterable[Job], args: argparse.Namespace, label: str) -> list[Result]:
    """Results of all jobs; those already under --out are read, the others run --jobs at a time."""
    results, missing = [], []
    for job in jobs:
        path = args.out / f"{job.name}.json"
        if path.exists():
            results.append(read(path))
        else:
            missing.append(job)
    bar = tqdm(total=len(results) + len(missing), initial=len(results), desc=label, unit="run")
    with bar, ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as workers:
        pending = [workers.submit(execute, job, str(args.out), args.keep_runs) for job in missing]
        for future in as_completed(pending):
            result = future.result()
            results.append(result)
            tqdm.write(
                f"{result.job.name}: {', '.join(f'{a:.3f}' for a in result.accuracy)}, "
                f"hard {result.hard_accuracy[-1]:.3f}, {result.seconds:.0f} s",
                file=sys.stderr,
            )
            bar.update()
    return results


def trials(args: argparse.Namespace) -> Iterator[Job]:
    """The learning-rate sweep of every method."""
    for method in args.methods:
        for base_lr, coordinator_lr in LEARNING_RATES[method][: args.trials]:
            yield Job(
                "trial",
                method,
                TRIAL_SEED,
                TRIAL_SEED,
                base_lr,
                coordinator_lr,
                args.steps,
                args.problems,
            )


def reports(args: argparse.Namespace, chosen: dict[str, Job]) -> Iterator[Job]:
    """The reported runs: the chosen rates on seeds and a task that chose nothing."""
    yield Job("base", "base", 0, 0, 0.0, 0.0, 0, args.problems)
    for method in args.methods:
        for seed in range(args.seeds):
            rates = chosen[method].base_lr, chosen[method].coordinator_lr
            yield Job("report", method, seed, 0, *rates, args.steps, args.problems)


def choose(results: list[Result], method: str) -> Job:
    """The trial with the best mean accuracy; on a tie the one with the smaller rates."""
    mine = [r for r in results if r.job.method == method]
    best = max(
        mine,
        key=lambda r: (statistics.mean(r.accuracy), -r.job.base_lr, -r.job.coordinator_lr),
    )
    return best.job


def spread(values: list[float], scale: float, digits: int) -> str:
    """Mean ± sample standard deviation, or the value alone."""
    shown = f"{scale * statistics.mean(values):.{digits}f}"
    if len(values) > 1:
        shown += f" ± {scale * statistics.stdev(values):.{digits}f}"
    return shown


def rates(job: Job) -> str:
    """The learning rates of a run, as in the table."""
    if job.method == "base":
        return "–"
    return f"{job.base_lr:g}" + (f", {job.coordinator_lr:g}" if job.coordinator_lr else "")


def table(results: list[Result], args: argparse.Namespace) -> str:
    """The reported table, in Markdown."""
    steps = next(r.job.checkpoints for r in results if r.job.method != "base")
    heads = [
        "method",
        "learning rate (θ, w)",
        *(f"{n} steps" for n in steps),
        f"longer chains, {steps[-1]} steps",
        "seconds",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for method in ("base", *args.methods):
        mine = [r for r in results if r.job.method == method]
        columns = list(zip(*(r.accuracy for r in mine), strict=True))
        cells = [f"`{method}`", rates(mine[0].job)]
        if method == "base":
            columns *= len(steps)
        cells += [spread(list(column), 100, 1) for column in columns]
        cells.append(spread([r.hard_accuracy[-1] for r in mine], 100, 1))
        cells.append(spread([r.seconds for r in mine], 1, 0) if method != "base" else "–")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def sweep_table(results: list[Result], args: argparse.Namespace, chosen: dict[str, Job]) -> str:
    """All trials, in Markdown, the chosen ones in bold."""
    lines = ["| trial | learning rate (θ, w) | mean validation, % |", "|---|---|---|"]
    for method in args.methods:
        mine = [r for r in results if r.job.method == method]
        mine.sort(key=lambda r: (r.job.base_lr, r.job.coordinator_lr))
        for r in mine:
            bold = "**" if r.job == chosen[method] else ""
            mean = f"{bold}{100 * statistics.mean(r.accuracy):.1f}{bold}"
            lines.append(f"| `{method}` | {rates(r.job)} | {mean} |")
    return "\n".join(lines)


def edges(args: argparse.Namespace, chosen: dict[str, Job]) -> list[str]:
    """A line for each method whose best θ rate is the largest or smallest tried."""
    lines = []
    for method in args.methods:
        tried = [base_lr for base_lr, _ in LEARNING_RATES[method][: args.trials]]
        if len(tried) > 1 and chosen[method].base_lr in (min(tried), max(tried)):
            lines.append(f"{method}: best rate is at the edge of those tried; try more (--trials)")
    return lines


def parse() -> argparse.Namespace:
    """The command line; --quick shrinks whatever was not given."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-methods"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, help="steps of each run (60)")
    parser.add_argument("--seeds", type=int, help="reported seeds (3)")
    parser.add_argument("--trials", type=int, help="learning-rate trials of each method (3)")
    parser.add_argument("--problems", type=int, help="held-out problems of each split (256)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, help="threads of each run (cores / jobs)")
    parser.add_argument("--keep-runs", action="store_true", help="keep the run folders")
    parser.add_argument("--quick", action="store_true", help="2 steps, 2 trials, 1 seed")
    args = parser.parse_args()
    quick = {"steps": 2, "seeds": 1, "trials": 2, "problems": 16}
    full = {"steps": 60, "seeds": 3, "trials": 3, "problems": 256}
    for name, value in (quick if args.quick else full).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.threads = args.threads or max(1, (os.cpu_count() or 1) // args.jobs)
    return args


def main() -> None:
    """Sweep, choose, report."""
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # read by the workers when they start
    os.environ["TQDM_DISABLE"] = "1"  # also theirs: only this process draws a bar
    swept = run_all(trials(args), args, "learning rates")
    chosen = {method: choose(swept, method) for method in args.methods}
    reported = run_all(reports(args, chosen), args, "reported runs")
    print(f"\n{table(reported, args)}\n")
    print(
        f"Greedy accuracy, %, on {args.problems} held-out problems a split, mean ± sd over "
        f"{args.seeds} seeds; {args.trials} learning-rate trials a method on another seed and "
        f"task; seconds of all steps, probes off, {args.threads} threads a run, "
        f"{args.jobs} run(s) at a time, "
        f"{platform.machine()}, Python {platform.python_version()}."
    )
    print(f"\n{sweep_table(swept, args, chosen)}\n")
    print("\n".join(edges(args, chosen)))


if __name__ == "__main__":
    main()
