"""What the detectors find in runs with one thing wrong, and in healthy ones.

    python benchmarks/detectors.py --jobs 2     # the whole table
    python benchmarks/detectors.py --seeds 1 --steps 40        # a first look

Each fault preset (workbench/faults.py) and each healthy run (grpo, bridge, sft, naive_mix of preset
pocket) is trained for so many steps on one thread, in a folder of its own under --work; a finished
one is not trained again, so the script goes on where it stopped. All are then examined anew as
`python -m workbench doctor` does, and the table goes into --out.

Examining costs seconds, so a changed detector is tried on the runs that are there: --examine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from workbench import open_run
from workbench.config import RunConfig
from workbench.diagnosis.doctor import examine
from workbench.faults import EXPECTED, FAULTS
from workbench.records import Finding

HEALTHY = ("bridge", "grpo", "naive_mix", "sft")
OUT = Path(__file__).parent / "results" / "detectors.md"
LEARNING_RATES = {"bridge": 1e-4, "grpo": 2e-4, "naive_mix": 1e-4, "sft": 2e-4}
"""Of θ in healthy runs: each method's best in benchmarks/results/methods.md."""
STALLED = 0.8
"""Share of the median last accuracy of its method's runs below which a run has not learned."""
UNSEEN = 3
"""Seeds from this one on were not looked at when the detectors' rules were last changed."""
NAMES_STALL = (
    "entropy_collapse",
    "zero_variance_groups",
    "vanishing_gradient",
    "kl_strangled",
    "plateau",
)
"""Detectors that are right about a run that has not learned."""
MEANING = """\
- Found: a detector that names the fault (`workbench/faults.py`, EXPECTED) told a warning or worse.
- Lead: steps between that and the first evaluation at which held-out accuracy was at most half of
  its best before; "–" where it never was. Accuracy is evaluated every five steps. First: the same
  of the first warning of any detector.
- Healthy: nothing was done to the run, and it learned: its last held-out accuracy is at least 0.8
  times the median of its method's runs. One that did not is stalled: warnings that say so
  (entropy, groups without variance, fading gradients) are true.
- A warning is false in a healthy run, or before the step at which a fault begins. In a run with a
  fault that works from the start, further warnings are its consequences, and are listed.
"""
SETTINGS: dict[str, object] = {
    "evaluate_every": 5,
    "token_views_every": 0,
    "paired_gain_every": 20,
    "snapshot_every": 10,
    "keep_last": 1,
    "keep_every": 0,
}


@dataclass(frozen=True)
class Job:
    """One run."""

    preset: str
    """A fault preset, or a method's name for a healthy run."""
    seed: int
    steps: int

    @property
    def name(self) -> str:
        """Its folder under --work."""
        return f"{self.preset}-seed{self.seed}-{self.steps}"

    @property
    def onset(self) -> int:
        """The first step whose metrics can show the fault."""
        faults = FAULTS.get(self.preset, {}).get("faults", {})
        return max(1, faults.get("corrupt_batch_at", 1), faults.get("stale_baseline_from", 1))

    def config(self) -> RunConfig:
        """What is trained."""
        if self.preset in FAULTS:
            return RunConfig.preset(self.preset, seed=self.seed, **SETTINGS)
        rate = LEARNING_RATES[self.preset]
        return RunConfig.preset(
            "pocket", method=self.preset, seed=self.seed, base_lr=rate, **SETTINGS
        )


@dataclass(frozen=True)
class Outcome:
    """What was found in one run."""

    job: Job
    steps: int
    found: Finding | None
    """The first finding, a warning at least, that names the fault."""
    halved: int | None
    """First evaluation at which accuracy was at most half of its best before."""
    accuracy: float
    """Held-out, of the last two evaluations."""
    warnings: list[Finding]
    """All of them, the critical too, by step."""

    def false(self, stalled: bool) -> list[Finding]:
        """Those that nothing was wrong for."""
        if self.job.preset in FAULTS:
            return [f for f in self.warnings if f.step < self.job.onset]
        return [f for f in self.warnings if not (stalled and f.detector in NAMES_STALL)]


def train(job: Job, work: str) -> None:
    """Train a run as far as it goes; a detector or a non-finite number may end it."""
    from workbench.session import Session, SessionError

    folder = Path(work) / job.name
    there = (folder / "run.sqlite").exists()
    with Session.resume(folder) if there else Session(job.config(), folder) as session:
        if session.step_number < job.steps:
            try:
                session.run(job.steps - session.step_number)
            except SessionError:
                if session.state != "paused":  # paused: a number was not finite, as meant
                    raise
    (folder / "done").touch()


def outcome(job: Job, work: Path) -> Outcome:
    """Examine a finished run."""
    run = open_run(work / job.name)
    report = examine(work / job.name)
    warnings = [f for f in report.diagnosis.findings if f.severity != "note"]
    warnings.sort(key=lambda f: f.step)
    named = [f for f in warnings if f.detector in EXPECTED.get(job.preset, ())]
    # a run that a fault stops in its first step has no accuracy
    accuracy = run.frame("metrics").reindex(columns=["step", "eval/accuracy"]).dropna()
    best, halved = 0.0, None
    for step, value in accuracy.itertuples(index=False):
        if halved is None and best > 0 and value <= best / 2:
            halved = int(step)
        best = max(best, value)
    last = float(accuracy["eval/accuracy"].tail(2).mean())
    return Outcome(job, run.last_step(), named[0] if named else None, halved, last, warnings)


def stalled_runs(outcomes: list[Outcome]) -> set[Job]:
    """The runs to which nothing was done and that learned less than their method's others."""
    found = set()
    for preset in HEALTHY:
        runs = [o for o in outcomes if o.job.preset == preset]
        if runs:
            usual = statistics.median(o.accuracy for o in runs)
            found |= {o.job for o in runs if o.accuracy < STALLED * usual}
    return found


def told(findings: list[Finding]) -> str:
    """'kl_blowup@12, truncation@20', each detector once."""
    first: dict[str, int] = {}
    for finding in findings:
        first.setdefault(finding.detector, finding.step)
    return ", ".join(f"{name}@{step}" for name, step in first.items()) or "–"


def tables(outcomes: list[Outcome]) -> str:
    """The report, in Markdown."""
    lines = [
        "| preset | seed | found | by | since, told | accuracy halved | lead | first "
        "| false before onset | all warnings |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    faulty = [o for o in outcomes if o.job.preset in FAULTS]
    for o in faulty:
        by = since = lead = first = "–"
        if o.found:
            by, since = o.found.detector, f"{o.found.since}, {o.found.step}"
            lead = str(o.halved - o.found.step) if o.halved else "–"
        if o.halved and o.warnings:
            first = str(o.halved - o.warnings[0].step)
        cells = [
            f"`{o.job.preset}`", o.job.seed, "yes" if o.found else "**no**", by, since,
            o.halved or "–", lead, first, told(o.false(False)), told(o.warnings),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "| method | seed | steps | accuracy | healthy | warnings |", "|" + "---|" * 6]
    untouched = [o for o in outcomes if o.job.preset not in FAULTS]
    stalled = stalled_runs(untouched)
    healthy = [o for o in untouched if o.job not in stalled]
    lines += [
        f"| `{o.job.preset}` | {o.job.seed} | {o.steps} | {o.accuracy:.0%} "
        f"| {'stalled' if o.job in stalled else 'yes'} | {told(o.warnings)} |"
        for o in untouched
    ]
    found = sum(o.found is not None for o in faulty)
    n_false = sum(len(o.false(o.job in stalled)) for o in outcomes)
    n_told = sum(len(o.warnings) for o in outcomes)
    leads = [o.halved - o.found.step for o in faulty if o.found and o.halved]
    n_named = sum(f.detector in EXPECTED[o.job.preset] for o in faulty for f in o.warnings)
    silent = sum(not o.warnings for o in healthy)
    first = [o.halved - o.warnings[0].step for o in faulty if o.warnings and o.halved]
    summary = [
        f"Found: {found} of {len(faulty)} runs with a fault.",
        f"False: {n_false} of {n_told} warnings"
        + (f" (precision {1 - n_false / n_told:.0%})." if n_told else "."),
        f"Of the {sum(len(o.warnings) for o in faulty)} warnings in runs with a fault {n_named} "
        "name it; the others tell what followed, or are false before it began.",
        f"Healthy runs without a warning: {silent} of {len(healthy)} ({len(stalled)} stalled).",
    ]
    new = [o for o in outcomes if o.job.seed >= UNSEEN]
    if new:
        fault, well = [o for o in new if o in faulty], [o for o in new if o in healthy]
        summary.append(
            f"Of the seeds from {UNSEEN} on, not seen when the rules were last changed: found "
            f"{sum(o.found is not None for o in fault)} of {len(fault)}, "
            f"{sum(len(o.false(o.job in stalled)) for o in new)} false warnings, "
            f"{sum(not o.warnings for o in well)} of {len(well)} healthy runs without one."
        )
    else:
        summary.append("All these runs had been looked at when the rules were last changed.")
    if leads:
        ahead = sum(lead > 0 for lead in leads)
        summary.append(
            f"Accuracy halved in {len(leads)} of the runs found; told before it in {ahead}, "
            f"lead {min(leads)} to {max(leads)} steps; some detector warned before it in "
            f"{sum(lead > 0 for lead in first)}, at it in {first.count(0)}."
        )
    return "\n".join([*summary, "", MEANING, *lines])


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-detectors"))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--steps", type=int, default=40, help="steps of each run")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each fault preset")
    parser.add_argument("--healthy-seeds", type=int, default=10, help="seeds of each healthy run")
    parser.add_argument("--presets", nargs="*", help="only these presets and methods")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--examine", action="store_true", help="train none: what is done already")
    return parser.parse_args()


def main() -> None:
    """Train what is missing, examine all, report."""
    args = parse()
    jobs = [Job(p, s, args.steps) for p in FAULTS for s in range(args.seeds)]
    jobs += [Job(p, s, args.steps) for p in HEALTHY for s in range(args.healthy_seeds)]
    if args.presets is not None:
        jobs = [job for job in jobs if job.preset in args.presets]
    args.work.mkdir(parents=True, exist_ok=True)
    missing = [job for job in jobs if not (args.work / job.name / "done").exists()]
    asked = len(jobs)
    if args.examine:
        jobs, missing = [job for job in jobs if job not in missing], []
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the workers when they start
    os.environ["TQDM_DISABLE"] = "1"  # also theirs: only this process draws a bar
    bar = tqdm(total=len(jobs), initial=len(jobs) - len(missing), unit="run", disable=False)
    with bar, ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as workers:
        pending = {workers.submit(train, job, str(args.work)): job for job in missing}
        for future in as_completed(pending):
            future.result()
            tqdm.write(f"{pending[future].name} done", file=sys.stderr)
            bar.update()
    report = tables([outcome(job, args.work) for job in jobs])
    header = (
        f"# Detectors\n\n{len(jobs)} runs of {args.steps} steps"
        f"{f' (of {asked}; the others were not finished)' if len(jobs) < asked else ''}, one "
        "thread each, made by\n"
        f"`python benchmarks/detectors.py --steps {args.steps} --seeds {args.seeds} "
        f"--healthy-seeds {args.healthy_seeds}{' --examine' if args.examine else ''}`.\n\n"
    )
    args.out.write_text(header + report + "\n", encoding="utf-8")
    print(report)


if __name__ == "__main__":
    main()
