"""The tables of a comparison, from outcomes and run folders: no model, no torch needed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import nan, sqrt
from statistics import fmean, stdev

import numpy as np
import pandas as pd

from workbench.comparing.jobs import Job
from workbench.comparing.outcome import Outcome, training_seconds
from workbench.probes.paired import t_quantile
from workbench.store import open_run

Done = Sequence[tuple[Job, Outcome]]

MEASURES = {
    "accuracy": "accuracy, %",
    "hard_accuracy": "out of distribution, %",
    "steps_to_target": "steps to target",
    "seconds_to_target": "seconds to target",
    "worst_drop": "worst drop, points",
    "findings": "findings",
    "seconds": "seconds",
    "peak_mb": "peak, MiB",
}
"""Columns of the outcome frame that are summarised, with their headings."""


def curve(job: Job, outcome: Outcome) -> pd.DataFrame:
    """Accuracy over a run's steps: step, accuracy, hard_accuracy, seconds of training until then.

    From the whole splits at the checkpoints, and in between from the probe `evaluate_every`, which
    measures the weights that a step began with.
    """
    metrics = open_run(job.run).frame("metrics")
    probed = pd.DataFrame({"step": metrics["step"] - 1})
    for name in ("accuracy", "hard_accuracy"):
        probed[name] = metrics[f"eval/{name}"] if f"eval/{name}" in metrics else nan
    whole = pd.DataFrame(
        {
            "step": outcome.checkpoints,
            "accuracy": outcome.accuracy,
            "hard_accuracy": outcome.hard_accuracy,
        }
    )
    found = pd.concat([probed.dropna(subset=["accuracy"]), whole])
    found = found.drop_duplicates("step", keep="last").sort_values("step")
    until = dict(zip(metrics["step"], training_seconds(metrics).cumsum(), strict=True))
    return found.assign(seconds=[until.get(step, 0.0) for step in found["step"]])


def default_target(done: Done) -> float:
    """90 % of the best method's mean accuracy at the end."""
    methods = {job.method for job, _ in done}
    return 0.9 * max(
        fmean(outcome.accuracy[-1] for job, outcome in done if job.method == method)
        for method in methods
    )


def outcome_frame(done: Done, target: float) -> pd.DataFrame:
    """One row a run: method, seed, MEASURES; NaN where the target was not reached.

    worst_drop: the deepest fall of the accuracy below its own earlier best.
    """
    rows = []
    for job, outcome in done:
        course = curve(job, outcome)
        reached = course[course["accuracy"] >= target]
        falls = course["accuracy"].cummax() - course["accuracy"]
        rows.append(
            {
                "method": job.method,
                "seed": job.seed,
                "steps": outcome.steps,
                "accuracy": outcome.accuracy[-1],
                "hard_accuracy": outcome.hard_accuracy[-1],
                "steps_to_target": float(reached["step"].iloc[0]) if len(reached) else nan,
                "seconds_to_target": float(reached["seconds"].iloc[0]) if len(reached) else nan,
                "worst_drop": float(falls.max()),
                "findings": float(outcome.findings),
                "seconds": outcome.seconds,
                "tokens": outcome.tokens,
                "peak_mb": outcome.peak_mb,
            }
        )
    return pd.DataFrame(rows)


def interval(values: Sequence[float], level: float = 0.05) -> float:
    """Half-width of the mean's t-interval; NaN for a single value."""
    if len(values) < 2:
        return nan
    return t_quantile(len(values) - 1, level) * stdev(values) / sqrt(len(values))


def summary_frame(outcomes: pd.DataFrame) -> pd.DataFrame:
    """One row a method: n, and for each of MEASURES its mean, its ± and how many seeds have it."""
    rows = []
    for method in outcomes["method"].unique():
        mine = outcomes[outcomes["method"] == method]
        row: dict[str, object] = {"method": method, "n": len(mine)}
        for name in MEASURES:
            values = mine[name].dropna().tolist()
            row[name] = fmean(values) if values else nan
            row[f"{name}_interval"] = interval(values)
            row[f"{name}_n"] = len(values)
        rows.append(row)
    return pd.DataFrame(rows)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of a mean difference: the share of sign choices that give as large a one.

    Source: Fisher's randomisation test for pairs. With n pairs it cannot be below 2/2^n. Beyond 14
    pairs it is the share among 9,999 random choices and the one observed.
    """
    n, observed = len(differences), abs(sum(differences)) - 1e-12
    if n <= 14:
        signs = np.array(list(product((1, -1), repeat=n)))
    else:
        signs = np.random.default_rng(0).choice((1, -1), size=(10_000, n))
        signs[0] = 1
    return float(np.mean(np.abs(signs @ np.array(differences)) >= observed))


def paired_frame(outcomes: pd.DataFrame, against: str, measure: str = "accuracy") -> pd.DataFrame:
    """Each method minus `against`, seed by seed: mean difference, ±, p, n; empty without it.

    p is exact and not corrected for the number of methods.
    """
    table = outcomes.pivot(index="seed", columns="method", values=measure)
    columns = ["method", "difference", "interval", "p", "n"]
    if against not in table:
        return pd.DataFrame(columns=columns)
    rows = []
    for method in outcomes["method"].unique():
        if method != against:
            differences = (table[method] - table[against]).dropna().tolist()
            n = len(differences)
            mean = fmean(differences) if n else nan
            rows.append((method, mean, interval(differences), sign_flip_p(differences), n))
    return pd.DataFrame(rows, columns=columns)
