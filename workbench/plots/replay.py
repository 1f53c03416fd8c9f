"""What a replayed step showed: norms by layer, sizes of updates."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import plotly.graph_objects as go

from workbench.plots._theme import (
    BASELINE,
    COLORWAY,
    COORDINATOR,
    JOINT,
    SFT,
    empty,
    figure,
    log_axis,
    room_for_labels,
    show,
)

_PASSES = {"rl": ("RL, joint", JOINT), "sft": ("SFT", SFT), "baseline_rl": ("RL-only", BASELINE)}
_PARTS = {
    "base": ("θ", JOINT),
    "baseline": ("θ̂", BASELINE),
    "coordinator": ("w", COORDINATOR),
}
MEASURES = {
    "gradient_norm": ("Gradient at each layer's output", "‖∂J/∂output‖"),
    "gradient_max": ("Largest gradient at each layer's output", ""),
    "activation_rms": ("Size of each layer's output", "root mean square"),
    "activation_max": ("Largest entry of each layer's output", ""),
}
"""What `layer_norms` can draw: title and unit."""


def layer_norms(
    layers: pd.DataFrame,
    measure: str = "gradient_norm",
    parts: bool = False,
    beside: pd.DataFrame | None = None,
) -> go.Figure:
    """One measure of every layer, a line a pass, in the network's order.

    `layers`: `Replay.layers`. parts: the parts of each block too. A layer with outputs that are
    not finite is marked by a cross. `beside`: those of a second replay, dashed.
    """
    title, unit = MEASURES[measure]
    if layers.empty:
        return empty(title, "Not traced: replay with trace=True.")
    drawn = figure(title, x="layer, input to output", y=unit)
    for rows, dash in _both(layers, beside):
        _layer_lines(drawn, rows if parts else rows[rows["module"] == rows["layer"]], measure, dash)
    _finish(drawn, beside)
    return drawn


def _finish(drawn: go.Figure, beside: pd.DataFrame | None) -> None:
    log_axis(drawn, [value for trace in drawn.data for value in trace.y])
    drawn.update_xaxes(type="category")
    room_for_labels(drawn)
    if beside is not None:
        drawn.update_layout(margin={"t": 100})  # the legend takes more rows


def _both(first: pd.DataFrame, beside: pd.DataFrame | None) -> Iterator[tuple[pd.DataFrame, str]]:
    yield first, "solid"
    if beside is not None:
        yield beside, "dash"


def _layer_lines(drawn: go.Figure, rows: pd.DataFrame, measure: str, dash: str) -> None:
    for at, (passing, own) in enumerate(rows.groupby("passing", sort=False)):
        name, colour = _PASSES.get(str(passing), (show(str(passing)), COLORWAY[at % 8]))
        name += ", second" if dash == "dash" else ""
        bad = own["nonfinite"] > 0
        drawn.add_trace(
            go.Scatter(
                x=own["module"].to_numpy(),
                y=own[measure].to_numpy(),
                name=name,
                mode="lines+markers",
                line={"color": colour, "width": 2, "dash": dash},
                marker={"size": 6},
                hovertemplate="%{x}: %{y:.4~g}",
            )
        )
        if bad.any():
            drawn.add_trace(
                go.Scatter(
                    x=own["module"][bad].to_numpy(),
                    y=[1.0] * int(bad.sum()),
                    name=f"{name}: not finite",
                    mode="markers",
                    marker={"size": 10, "symbol": "x", "color": colour},
                    hovertext=[f"{n} tokens not finite" for n in own["nonfinite"][bad]],
                    hoverinfo="text+x",
                )
            )


def update_sizes(
    updates: pd.DataFrame, measure: str = "ratio", beside: pd.DataFrame | None = None
) -> go.Figure:
    """How far the update moved each layer of θ, θ̂ and w. `updates`: `Replay.updates`.

    measure: ratio, ‖Δ‖/‖W‖, or update_norm, ‖Δ‖. `beside`: those of a second replay, dashed.
    """
    title = "Update of each layer"
    if updates.empty:
        return empty(title, "Not traced, or the step was not applied.")
    unit = "‖Δ‖ / ‖W‖" if measure == "ratio" else "‖Δ‖"
    drawn = figure(title, x="layer, input to output", y=unit)
    for rows, dash in _both(updates, beside):
        for part, own in rows[rows["layer"] != "all"].groupby("part", sort=False):
            name, colour = _PARTS[str(part)]
            drawn.add_trace(
                go.Scatter(
                    x=own["layer"].to_numpy(),
                    y=own[measure].to_numpy(),
                    name=name if dash == "solid" else f"{name}, second",
                    mode="lines+markers",
                    line={"color": colour, "width": 2, "dash": dash},
                    marker={"size": 6},
                    hovertemplate="%{x}: %{y:.3~g}",
                )
            )
    _finish(drawn, beside)
    return drawn
