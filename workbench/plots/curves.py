"""Curves of a run's metrics over its steps, with the commands given to it marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go

from workbench.plots._theme import (
    AGAINST,
    BASELINE,
    COLORWAY,
    COORDINATOR,
    JOINT,
    MUTED,
    SFT,
    empty,
    figure,
    log_axis,
    newest,
    show,
    thinned,
    whole_steps,
)
from workbench.plots.marks import mark_commands, mark_findings
from workbench.records import PHASES, SET_ACCURACY

SPIKE = 30.0
"""Times the median from which on a value flattens all others on a linear axis."""


@dataclass(frozen=True)
class Line:
    """One column of the metrics frame and how it is drawn."""

    column: str
    label: str
    colour: str
    dash: str = "solid"
    band: str = ""
    """Column with a standard error; ±1.96 of it is shaded."""
    trials: str = ""
    """Column with the number of problems behind a share; its 95 % interval (Wilson) is shaded."""
    in_legend: bool = True


@dataclass(frozen=True)
class Panel:
    """One figure of curves."""

    title: str
    lines: tuple[Line, ...]
    unit: str = ""
    log: bool = False
    spiky: bool = False
    """Drawn on a logarithmic axis where a few values are so high that the others lie flat."""
    share: bool = False
    """Values are shares: written in per cent, the axis begins at zero."""
    each: str = ""
    """A line more for each column of the frame that begins so, called what follows."""
    what: str = ""
    """What it shows and how to read it, in a sentence or two."""
    missing: str = "Press Run, or take a step."
    """Said behind it while nothing is measured."""


PANELS: dict[str, Panel] = {
    "reward": Panel(
        "Reward of the rollouts",
        (
            Line("reward", "joint θ+w", JOINT),
            Line("baseline/reward", "RL-only θ̂+w", BASELINE),
        ),
        "mean reward",
        what="What each step's rollouts earn, and what they would earn under the RL-only policy "
        "(the same texts, reweighted).",
    ),
    "accuracy": Panel(
        "Greedy accuracy",
        (
            Line("eval/accuracy", "joint", JOINT, trials="eval/problems"),
            Line("eval/baseline_accuracy", "RL-only", BASELINE),
            Line("eval/hard_accuracy", "harder split", JOINT, "dot"),
        ),
        share=True,
        each=SET_ACCURACY,
        what="Share of held-out problems that are answered right without sampling noise, with the "
        "95 % interval that so many problems give; the harder split was never trained on.",
        missing="Measured every few steps (evaluate_every, evaluation_sets).",
    ),
    "gain": Panel(
        "Cooperative gain",
        (
            Line("gain/shared", "shared", COORDINATOR, band="gain/shared_se"),
            Line("gain/paired", "paired", SFT, band="gain/paired_se"),
        ),
        "reward difference",
        what="Reward of the joint policy minus that of the RL-only one, ± 1.96 standard errors: "
        "above zero the demonstrations help.",
        missing="See shared_gain_every, paired_gain_every.",
    ),
    "loss": Panel(
        "Losses",
        (
            Line("loss/sft", "SFT", SFT),
            Line("loss/rl", "RL joint", JOINT),
            Line("loss/baseline_rl", "RL-only", BASELINE),
        ),
        "nats a token",
        what="What the updates lower: the loss on demonstrations, and the RL objective with its "
        "sign turned.",
    ),
    "kl": Panel(
        "KL to the starting policy",
        (Line("kl", "joint", JOINT), Line("baseline/kl", "RL-only", BASELINE)),
        "nats a token",
        spiky=True,
        what="How far the policies have moved from the model at the start, on their rollouts.",
    ),
    "entropy": Panel(
        "Entropy",
        (Line("entropy", "joint", JOINT),),
        "nats a token",
        what="How open the policy is at each token: near zero it no longer explores.",
    ),
    "length": Panel(
        "Completion length",
        (
            Line("completions/mean_length", "mean", JOINT),
            Line("completions/max_length", "longest", MUTED, "dot"),
        ),
        "tokens",
        what="Tokens of a completion: the mean and the longest of the step.",
    ),
    "grad_norm": Panel(
        "Gradient norms (dotted: after clipping)",
        (
            Line("grad_norm", "θ", JOINT),
            Line("grad_norm/clipped", "θ clipped", JOINT, "dot", in_legend=False),
            Line("baseline/grad_norm", "θ̂", BASELINE),
            Line("baseline/grad_norm_clipped", "θ̂ clipped", BASELINE, "dot", in_legend=False),
            Line("coordinator/grad_norm", "w", COORDINATOR),
            Line("coordinator/grad_norm_clipped", "w clipped", COORDINATOR, "dot", in_legend=False),
        ),
        log=True,
        what="Sizes of the gradients of θ, θ̂ and w before clipping and, dotted, after it "
        "(max_grad_norm).",
    ),
    "health": Panel(
        "Shares to keep an eye on",
        (
            Line("frac_reward_zero_std", "groups all alike", AGAINST),
            Line("completions/clipped_ratio", "texts cut off", SFT),
            Line("clip_ratio/region_mean", "tokens clipped", JOINT),
            Line("baseline/clip_ratio", "clipped, RL-only", BASELINE),
        ),
        share=True,
        what="Groups whose rollouts all earn the same teach nothing; texts cut off reach the "
        "length limit; clipped tokens left the trust region.",
    ),
}
"""The figures of a run, by name: what `curves` draws for each."""


def curves(
    metrics: pd.DataFrame,
    panel: str | Panel | Sequence[str],
    commands: pd.DataFrame | None = None,
    findings: pd.DataFrame | None = None,
) -> go.Figure:
    """Curves over steps.

    `metrics`: frame "metrics" (one row a step, column `step`). `panel`: a name of PANELS, a Panel,
    or columns of the frame. `commands`: frame "commands"; what changed the run is marked by a
    dashed line behind the step it followed. `findings`: frame "findings"; what is about a column
    of the panel is marked at its onset, on the panel "reward" each warning.
    """
    if isinstance(panel, str):
        panel = PANELS[panel]
    elif not isinstance(panel, Panel):
        lines = tuple(
            Line(column, show(column), COLORWAY[i % len(COLORWAY)])
            for i, column in enumerate(panel)
        )
        panel = Panel(", ".join(show(column) for column in panel), lines)
    lines = panel.lines
    if panel.each:
        lines += _each(metrics, panel.each)
    present = [
        line
        for line in lines
        if line.column in metrics.columns and metrics[line.column].notna().any()
    ]
    if not present:
        return empty(panel.title, f"{panel.what} {panel.missing}")
    first, last = int(metrics["step"].min()), int(metrics["step"].max())
    metrics, cut = thinned(metrics, [line.column for line in present])
    drawn = figure(panel.title + cut, y=panel.unit)
    for line in present:
        under = line.colour == BASELINE and line.dash == "solid"  # seen where the two are equal
        measured = metrics[metrics[line.column].notna()]
        if {line.band, line.trials} & set(measured.columns):
            drawn.add_trace(_band(measured, line))
        drawn.add_trace(
            go.Scatter(
                x=measured["step"].to_numpy(),
                y=measured[line.column].to_numpy(),
                name=line.label,
                showlegend=line.in_legend,
                mode="lines+markers" if len(measured) <= 40 else "lines",
                line={"color": line.colour, "dash": line.dash, "width": 3.5 if under else 1.8},
                marker={"size": 4},
                zorder=-1 if under else 0,
                hovertemplate="%{y:.1%}" if panel.share else "%{y:.4~g}",
            )
        )
    drawn.update_layout(hovermode="x unified", showlegend=len(lines) > 1)
    if sum(line.in_legend for line in present) > 3:
        drawn.update_layout(margin={"t": 72})  # the legend takes two rows
    if panel.log or (panel.spiky and _flattened(metrics, present)):
        log_axis(drawn, pd.concat([metrics[line.column] for line in present]))
    if panel.share:
        drawn.update_yaxes(tickformat=".0%", rangemode="tozero")
    whole_steps(drawn, first, last)
    if commands is not None:
        mark_commands(drawn, commands)
    if findings is not None:
        columns = {line.column for line in lines}
        mark_findings(drawn, findings, None if "reward" in columns else columns)
    return drawn


def _flattened(metrics: pd.DataFrame, lines: Sequence[Line]) -> bool:
    """Whether the highest value is so far above the median that a linear axis hides the rest."""
    values = pd.concat([metrics[line.column] for line in lines])
    positive = values[values > 0]
    return len(positive) > 0 and bool(positive.max() > SPIKE * positive.median())


def _each(metrics: pd.DataFrame, prefix: str) -> tuple[Line, ...]:
    """A line for each column that begins with `prefix`, in the columns' order."""
    columns = [column for column in metrics.columns if column.startswith(prefix)]
    return tuple(
        Line(
            column,
            show(column.removeprefix(prefix), 28),
            COLORWAY[2:][i % (len(COLORWAY) - 2)],
            "dash",
        )
        for i, column in enumerate(columns)
    )


def _band(measured: pd.DataFrame, line: Line) -> go.Scatter:
    """The 95 % interval around a line, as one closed polygon."""
    known = measured[measured[line.band or line.trials].notna()]
    value, spread = known[line.column], known[line.band or line.trials]
    low, high = (
        wilson(value, spread) if line.trials else (value - 1.96 * spread, value + 1.96 * spread)
    )
    return go.Scatter(
        x=[*known["step"], *known["step"][::-1]],
        y=[*high, *low[::-1]],
        fill="toself",
        fillcolor=line.colour,
        opacity=0.18,
        line={"width": 0},
        mode="lines",
        showlegend=False,
        hoverinfo="skip",
    )


def wilson(share: pd.Series, n: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Wilson's 95 % interval of a share of n problems: (low, high). [Wilson 1927]"""
    z = 1.96**2 / n
    middle, half = share + z / 2, (z * share * (1 - share) + z**2 / 4) ** 0.5
    return (middle - half) / (1 + z), (middle + half) / (1 + z)


def phase_seconds(metrics: pd.DataFrame, most_steps: int = 150) -> go.Figure:
    """Seconds each phase of the newest steps took, stacked. `metrics`: frame "metrics"."""
    phases = [phase for phase in PHASES if f"seconds/{phase}" in metrics.columns]
    title = "Seconds a step"
    if metrics.empty or not phases:
        return empty(title, "Nothing measured yet: press Run, or take a step.")
    metrics, cut = newest(metrics, most_steps)
    drawn = figure(title + cut, y="seconds")
    for phase, colour in zip(phases, COLORWAY, strict=False):
        drawn.add_trace(
            go.Bar(
                x=metrics["step"].to_numpy(),
                y=metrics[f"seconds/{phase}"].to_numpy(),
                name=phase,
                marker={"color": colour, "line": {"width": 0}},
                hovertemplate="%{y:.2f} s",
            )
        )
    drawn.update_layout(
        barmode="stack",
        bargap=0.15,
        hovermode="x unified",
        legend={"orientation": "v", "x": 1.0, "y": 1, "yanchor": "top"},
        margin={"t": 40, "r": 120},
    )
    whole_steps(drawn, int(metrics["step"].min()), int(metrics["step"].max()))
    return drawn
