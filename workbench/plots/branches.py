"""A run and what was branched off it, on one chart: the shared trunk is drawn once."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from workbench.plots._theme import COLORWAY, MUTED, empty, figure, show, thinned, whole_steps


def branches(tree: pd.DataFrame, metrics: pd.DataFrame, metric: str = "reward") -> go.Figure:
    """A metric of every branch over steps; each line begins where it left its parent's.

    `tree`: `run_tree(folder)`. `metrics`: `branch_metrics(folder)`. The legend and the hover say
    what was changed. What a rewind gave up is dotted.
    """
    title = f"{show(metric)} of the branches"
    if metric not in metrics or metrics[metric].isna().all():
        return empty(title, "No branch has measured this yet.")
    known = metrics[metrics[metric].notna()]
    drawn = figure(title, y=show(metric))
    rows = tree.set_index("node")
    for at, (node, row) in enumerate(rows.iterrows()):
        line = _line(rows, known, str(node), metric)
        if line.empty:
            continue
        changes = show(row["changes"], 60) or ("the start" if not row["parent"] else "no change")
        name, hover = f"{show(str(node), 40)}: {changes}", "step %{x}: %{y:.4~g}<br>" + changes
        shared = rows["from_step"][rows["parent"] == node].max()  # others stand on it; NaN: none do
        past = row["state"] == "superseded"
        kept = line[line["step"] <= shared] if past else line
        given_up = line[max(len(kept) - 1, 0) :] if past else line[:0]
        for points, colour, dash in (
            (kept, COLORWAY[at % len(COLORWAY)], "solid"),
            (given_up, MUTED, "dot"),
        ):
            if points.empty:
                continue
            points, _ = thinned(points, [metric])
            drawn.add_trace(
                go.Scatter(
                    x=points["step"].to_numpy(),
                    y=points[metric].to_numpy(),
                    name=name if dash == "solid" else f"{name} (given up)",
                    mode="lines+markers" if len(line) <= 40 else "lines",
                    line={"color": colour, "width": 2, "dash": dash},
                    marker={"size": 4},
                    hovertemplate=hover + ("" if dash == "solid" else ", given up by a rewind"),
                )
            )
    drawn.update_layout(
        showlegend=True,
        hovermode="closest",
        legend={"y": -0.14, "yanchor": "top"},
        margin={"t": 40, "autoexpand": True},
    )
    whole_steps(drawn, int(known["step"].min()), int(known["step"].max()))
    return drawn


def _line(rows: pd.DataFrame, known: pd.DataFrame, node: str, metric: str) -> pd.DataFrame:
    """A branch's own points, behind the last one of its trunk that it grew from."""
    own = known[known["node"] == node][["step", metric]]
    at, parent = rows.loc[node, "from_step"], rows.loc[node, "parent"]
    while parent and not own.empty:
        before = known[(known["node"] == parent) & (known["step"] <= at)][["step", metric]]
        if len(before):
            return pd.concat([before.tail(1), own])
        at = min(at, rows.loc[parent, "from_step"])
        parent = rows.loc[parent, "parent"]
    return own
