"""Curves of several runs in one figure."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from workbench.plots._theme import COLORWAY, empty, figure, show, thinned, whole_steps


def method_curves(curves: pd.DataFrame, column: str, title: str, over: str = "step") -> go.Figure:
    """Each method's mean over its seeds, and thin lines for the seeds; `column` is a share.

    curves: one row a measurement: method, seed, `column`, and `over` (step or seconds).
    """
    found = curves.dropna(subset=[column])
    if found.empty:
        return empty(title, "Nothing was evaluated.")
    drawn = figure(title, over)
    for i, method in enumerate(found["method"].unique()):
        mine = found[found["method"] == method]
        colour = COLORWAY[i % len(COLORWAY)]
        dash = ("solid", "dot", "dash")[i // len(COLORWAY) % 3]
        several = mine["seed"].nunique() > 1
        for seed, run in mine.groupby("seed"):
            drawn.add_scatter(
                x=run[over],
                y=run[column],
                mode="lines",
                name=show(f"{method}, seed {seed}"),
                legendgroup=method,
                showlegend=not several,
                opacity=0.3 if several else 1.0,
                line={"color": colour, "width": 1 if several else 2, "dash": dash},
            )
        if several:
            by = mine.groupby("step")[[column, over]].mean()
            drawn.add_scatter(
                x=by[over],
                y=by[column],
                mode="lines",
                name=show(method),
                legendgroup=method,
                line={"color": colour, "width": 2.5, "dash": dash},
            )
    drawn.update_yaxes(tickformat=".0%", rangemode="nonnegative")
    return drawn


def overlaid_runs(frames: Mapping[str, pd.DataFrame], metric: str) -> go.Figure:
    """One metric of several runs, by run name; `frames`: their metrics frames.

    Of a few runs the first have the wider lines, so that they are seen under others like them.
    """
    drawn = figure(show(metric), y=show(metric))
    steps: list[int] = []
    for i, (name, frame) in enumerate(frames.items()):
        measured = frame[["step", metric]].dropna() if metric in frame else frame[:0]
        if measured.empty:
            continue
        measured, _ = thinned(measured, [metric])
        steps += [int(measured["step"].iloc[0]), int(measured["step"].iloc[-1])]
        above = min(len(frames), 4) - 1 - i
        drawn.add_scatter(
            x=measured["step"],
            y=measured[metric],
            mode="lines+markers" if len(measured) <= 40 else "lines",
            name=show(name),
            line={
                "color": COLORWAY[i % len(COLORWAY)],
                "dash": ("solid", "dot", "dash")[i // len(COLORWAY) % 3],
                "width": 2 + 1.5 * max(above, 0),
            },
            marker={"size": 4},
        )
    if not drawn.data:
        return empty(show(metric), "None of the chosen runs has measured this.")
    whole_steps(drawn, min(steps), max(steps))
    return drawn.update_layout(showlegend=True)
