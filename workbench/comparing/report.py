"""The report of a comparison: table.md, outcomes.csv and one self-contained report.html."""

from __future__ import annotations

import html
import platform
from collections.abc import Sequence
from math import isnan

import pandas as pd

from workbench import plots
from workbench.comparing.jobs import SECOND_RATE, Comparison, Job
from workbench.comparing.tables import (
    MEASURES,
    Done,
    curve,
    default_target,
    outcome_frame,
    paired_frame,
    summary_frame,
)

PERCENT = ("accuracy", "hard_accuracy", "worst_drop")


def write_report(comparison: Comparison, done: Done, tried: Done, jobs: int) -> pd.DataFrame:
    """Write the report's files into the comparison's folder; returns the summary."""
    target = default_target(done) if comparison.target is None else comparison.target
    outcomes = outcome_frame(done, target)
    summary = summary_frame(outcomes)
    against = "bridge" if "bridge" in comparison.methods else comparison.methods[0]
    pairs = {m: paired_frame(outcomes, against, m) for m in ("accuracy", "hard_accuracy")}
    told = conditions(comparison, target, jobs)
    tables = [markdown_summary(summary, done), told]
    tables += [markdown_pairs(pairs[m], against, MEASURES[m]) for m in pairs]
    if tried and not comparison.tuned_in:
        tables += [markdown_trials(tried, done), at_the_edge(tried, done)]
    text = "\n\n".join(part for part in tables if part) + "\n"
    (comparison.run / "table.md").write_text(text, encoding="utf-8")
    outcomes.to_csv(comparison.run / "outcomes.csv", index=False)
    page = html_page(comparison, done, tables)
    (comparison.run / "report.html").write_text(page, encoding="utf-8")
    return summary


def conditions(comparison: Comparison, target: float, jobs: int) -> str:
    """What the numbers were made under, in a paragraph."""
    budget = comparison.budget
    equal = (
        f"{comparison.steps} steps each"
        if budget.kind == "steps"
        else f"{budget} each, at most {comparison.steps} steps"
    )
    tuned = "The same learning rates for all, none tuned"
    if comparison.sweep:
        tuned = f"{comparison.sweep} learning-rate trial(s) a method on another seed and task"
    if comparison.tuned_in:
        folder, sweep = comparison.tuned_in.run.name, comparison.tuned_in.sweep
        tuned = f"Learning rates as {sweep} trial(s) a method chose them for {folder}"
    return (
        f"Equal budgets: {equal}. Mean ± 95 % t-interval over {len(comparison.seeds)} seed(s); "
        f"accuracies are greedy, on whole held-out splits. {tuned}. "
        f"Target: {100 * target:.1f} %; a bracket says how many seeds reached it. Seconds are of "
        "training, without probes; worst drop is the deepest fall below an earlier best. "
        f"{jobs} run(s) at a time on {platform.machine()}, Python {platform.python_version()}."
    )


def _cell(name: str, mean: float, half: float, n: int, of: int) -> str:
    if isnan(mean):
        return "–"
    scale = 100.0 if name in PERCENT else 1.0
    digits = 1 if name in (*PERCENT, "findings", "steps_to_target") else 0
    shown = f"{scale * mean:.{digits}f}"
    if not isnan(half):
        shown += f" ± {scale * half:.{digits}f}"
    return shown + (f" [{n}/{of}]" if n < of else "")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def _rates(job: Job) -> str:
    rates = f"{job.config.training.base_lr:g}"
    if job.method in SECOND_RATE:
        rates += f", {job.config.get(SECOND_RATE[job.method]):g}"
    return rates


def markdown_summary(summary: pd.DataFrame, done: Done) -> str:
    """The main table, in Markdown."""
    rates = {job.method: _rates(job) for job, _ in done}
    rows = [
        [f"`{row['method']}`", rates[str(row["method"])]]
        + [
            _cell(name, row[name], row[f"{name}_interval"], int(row[f"{name}_n"]), int(row["n"]))
            for name in MEASURES
        ]
        for row in summary.to_dict("records")
    ]
    return _table(["method", "learning rate (θ, second)", *MEASURES.values()], rows)


def markdown_pairs(pairs: pd.DataFrame, against: str, heading: str) -> str:
    """Differences to one method, in Markdown; empty where there is nothing to pair."""
    if pairs.empty or int(pairs["n"].max()) < 2:
        return ""
    rows = [
        [
            f"`{row.method}`",
            f"{100 * row.difference:+.1f} ± {100 * row.interval:.1f}",
            f"{row.p:.3f}",
            str(row.n),
        ]
        for row in pairs.itertuples()
    ]
    heads = [
        f"minus `{against}`, {heading.removesuffix(', %')}",
        "points",
        "p (sign flips, uncorrected)",
        "seeds",
    ]
    return _table(heads, rows)


def markdown_trials(tried: Done, done: Done) -> str:
    """All trials, the chosen ones in bold, in Markdown."""
    chosen = {job.method: job.rates for job, _ in done}
    rows = []
    for job, outcome in tried:
        bold = "**" if chosen[job.method] == job.rates else ""
        mean = sum(outcome.accuracy) / len(outcome.accuracy)
        rows.append([f"`{job.method}`", _rates(job), f"{bold}{100 * mean:.1f}{bold}"])
    return _table(["trial", "learning rate (θ, second)", "mean validation, %"], rows)


def at_the_edge(tried: Done, done: Done) -> str:
    """Which methods might want a rate that was not tried; empty where none does."""
    chosen = {job.method: job.rates.base for job, _ in done}
    found: dict[str, list[str]] = {"largest": [], "smallest": []}
    for method, rate in chosen.items():
        mine = {job.rates.base for job, _ in tried if job.method == method}
        if len(mine) > 1 and rate in (min(mine), max(mine)):
            found["largest" if rate == max(mine) else "smallest"].append(method)
    told = [f"the {end} for {', '.join(names)}" for end, names in found.items() if names]
    return f"The best rate of θ is the one at the edge: {'; '.join(told)}." if told else ""


STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1200px;margin:2rem auto;padding:0 1rem;"
    "color:#1d2431}table{border-collapse:collapse;margin:1rem 0}td,th{padding:.3rem .7rem;"
    "border-bottom:1px solid #ddd;text-align:left;font-variant-numeric:tabular-nums}"
    "td{white-space:nowrap}td+td,th+th{text-align:right}"
)


def html_page(comparison: Comparison, done: Done, tables: Sequence[str]) -> str:
    """Everything in one file that needs no network."""
    curves = pd.concat(
        [curve(job, outcome).assign(method=job.method, seed=job.seed) for job, outcome in done],
        ignore_index=True,
    )
    figures = [
        plots.method_curves(curves, "accuracy", "Greedy accuracy, held-out prompts"),
        plots.method_curves(curves, "hard_accuracy", "Greedy accuracy, out of distribution"),
        plots.method_curves(curves, "accuracy", "Accuracy over seconds of training", "seconds"),
    ]
    drawn = "".join(
        figure.to_html(full_html=False, include_plotlyjs=i == 0, default_height=360)
        for i, figure in enumerate(figures)
    )
    body = "".join(_html_of(part) for part in tables if part)
    title = (
        f"{len(comparison.methods)} methods on {comparison.base.task.kind}, "
        f"{len(comparison.seeds)} seed(s)"
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}'
        f"</title><style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
        f"{body}{drawn}</body></html>"
    )


def _html_of(markdown: str) -> str:
    """One of our own tables or paragraphs as HTML."""
    if not markdown.startswith("|"):
        return f"<p>{html.escape(markdown)}</p>"
    lines = [line.strip("|").split("|") for line in markdown.splitlines()]
    head = "".join(f"<th>{_inline(cell)}</th>" for cell in lines[0])
    rows = "".join(
        f"<tr>{''.join(f'<td>{_inline(cell)}</td>' for cell in line)}</tr>" for line in lines[2:]
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _inline(cell: str) -> str:
    text = html.escape(cell.strip())
    if text.startswith("**"):
        return f"<b>{text.strip('*')}</b>"
    return text.replace("`", "")
