"""Carry a comparison out: one fresh process a run, some at a time, resumable, one progress bar."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Iterable
from math import nan
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from tqdm.auto import tqdm

from workbench.comparing.jobs import Budget, Comparison, Job, Rates, choose
from workbench.comparing.outcome import (
    Outcome,
    generated_tokens,
    read_outcome,
    training_seconds,
    write_outcome,
)
from workbench.comparing.report import write_report
from workbench.config import ConfigError
from workbench.store import RunFolderError, open_run

if TYPE_CHECKING:
    from workbench.session import Session


def compare(comparison: Comparison, jobs: int = 1) -> pd.DataFrame:
    """Run what is not done yet, `jobs` runs at a time; returns the table and writes the report.

    Raises ConfigError, RunFolderError. After Ctrl-C every run is saved, and the same call goes on.
    """
    comparison.run.mkdir(parents=True, exist_ok=True)
    trials = comparison.trials()
    tried = list(zip(trials, _run_all(trials, jobs, "learning rates"), strict=True))
    chosen: dict[str, Rates] = {}
    if tried:
        chosen = {method: choose(tried, method) for method in comparison.methods}
    reports = comparison.reports(chosen)
    done = list(zip(reports, _run_all(reports, jobs, "runs"), strict=True))
    return write_report(comparison, done, tried, jobs)


def asked(job: Job) -> dict[str, object]:
    """What an outcome must have been made for, to count as this job's."""
    return {"steps": job.steps, "budget": job.budget.kind, "amount": job.budget.amount}


def _finished(job: Job) -> Outcome | None:
    """The job's outcome, if it is done. Raises ConfigError where its folder is another run's."""
    outcome = read_outcome(job.run)
    if outcome is None and not job.run.exists():
        return None
    there = open_run(job.run).config
    if there != job.config:
        different = [k for k, v in job.config.flat().items() if there.flat().get(k) != v]
        raise ConfigError(
            f"compare: {job.run} is a run with other settings "
            f"({', '.join(different[:4]) or 'task'}); choose another --run folder"
        )
    if outcome is not None and outcome.asked != asked(job):
        raise ConfigError(
            f"compare: {job.run} was run for another budget ({outcome.asked}); "
            "choose another --run folder"
        )
    return outcome


def _run_all(jobs: list[Job], at_once: int, label: str) -> list[Outcome]:
    outcomes = {job.run: found for job in jobs if (found := _finished(job)) is not None}
    missing = [job for job in jobs if job.run not in outcomes]
    if not missing:
        return [outcomes[job.run] for job in jobs]
    total = sum(job.steps for job in jobs)
    bar = tqdm(total=total, desc=label, unit="step", dynamic_ncols=True)
    threads = int(os.environ.get("OMP_NUM_THREADS", 0)) or (os.cpu_count() or 1) // at_once
    context = _processes(jobs)
    try:
        # a fresh process for each run: peak memory is its own
        with bar, context.Pool(at_once, _quiet, (max(1, threads),), maxtasksperchild=1) as pool:
            pending = [pool.apply_async(execute, (job,)) for job in missing]
            while waiting := [result for result in pending if not result.ready()]:
                _show(bar, jobs)
                waiting[0].wait(0.5)
                for result in pending:
                    if result.ready():
                        result.get()  # an error of one run is told at once
            for job, result in zip(missing, pending, strict=True):
                outcomes[job.run] = result.get()
            _show(bar, jobs)
            pool.close()
            pool.join()
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on ({bar.n} of {total} steps)", file=sys.stderr)
        raise
    return [outcomes[job.run] for job in jobs]


def _show(bar: tqdm[None], jobs: Iterable[Job]) -> None:
    """Steps of all runs, read from their folders."""
    steps = 0
    for job in jobs:
        if read_outcome(job.run) is not None:
            steps += job.steps
        elif job.run.exists():
            try:
                steps += open_run(job.run).last_step()
            except RunFolderError:  # just being made
                continue
    if steps > bar.n:
        bar.update(steps - bar.n)


def _processes(jobs: Iterable[Job]) -> BaseContext:
    """How processes are made: forked from one that has imported torch, which saves seconds a run.

    Not where a run may use CUDA, which does not survive a fork.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods() or any(
        job.config.model.device != "cpu" for job in jobs
    ):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["workbench.session"])
    return context


def _quiet(threads: int) -> None:
    """In a worker: its threads; Ctrl-C goes to the parent, which ends it politely."""
    import torch

    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # the session is closed on the way out
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def execute(job: Job) -> Outcome:
    """Do one run, or what is left of it, and write its outcome."""
    from transformers.utils import logging  # here: the parent needs no model

    from workbench.session import Session

    logging.disable_progress_bar()
    try:
        session = Session.open(job.run) if job.run.exists() else Session(job.config, job.run)
    except RunFolderError as error:
        raise RunFolderError(f"compare: {job.run}: {error}") from None
    kept = job.run / "checkpoints"
    with session:
        accuracy: dict[int, tuple[float, float]] = _read(kept)
        going = True
        while going:
            last = session.step_number
            going = last < job.steps and not _spent(job.budget, session)
            if last not in accuracy and (last in job.checkpoints or not going):
                accuracy[last] = _evaluate(session, hard=job.kind == "report")
                _write(kept, accuracy)
            if going:
                session.step()
        metrics, findings = session.frame("metrics"), session.frame("findings")
        checkpoints = sorted(step for step in accuracy if step <= last)
        outcome = Outcome(
            asked(job),
            last,
            checkpoints,
            [accuracy[step][0] for step in checkpoints],
            [accuracy[step][1] for step in checkpoints],
            float(training_seconds(metrics).sum()),
            float(generated_tokens(metrics).sum()),
            _peak_mb(),
            int(findings["severity"].isin(["warning", "critical"]).sum()),
        )
    write_outcome(job.run, outcome)
    return outcome


def _spent(budget: Budget, session: Session) -> bool:
    if budget.kind == "steps" or session.step_number == 0:
        return False
    metrics = session.frame("metrics")
    used = generated_tokens(metrics) if budget.kind == "tokens" else training_seconds(metrics)
    return float(used.sum()) >= budget.amount


def _evaluate(session: Session, hard: bool) -> tuple[float, float]:
    """Accuracy on the whole splits; NaN where the task has none, and of `hard` if not wanted."""
    found = session.evaluate("validation") if session.problems("validation") else nan
    return found, session.evaluate("hard") if hard and session.problems("hard") else nan


def _peak_mb() -> float:
    import torch

    unit = 1024 if sys.platform != "darwin" else 1024 * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    if torch.cuda.is_available():
        peak += torch.cuda.max_memory_allocated() / 2**20
    return peak


def _read(path: Path) -> dict[int, tuple[float, float]]:
    if not path.exists():
        return {}
    rows = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {int(step): (float(a), float(b)) for step, a, b in rows}


def _write(path: Path, accuracy: dict[int, tuple[float, float]]) -> None:
    text = "".join(f"{step} {a!r} {b!r}\n" for step, (a, b) in sorted(accuracy.items()))
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
