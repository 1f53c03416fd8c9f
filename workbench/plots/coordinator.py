"""The coordinator: how large its change of each layer is, and what it does to a text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from workbench.plots._theme import (
    AGAINST,
    COORDINATOR,
    JOINT,
    MUTED,
    TEXT,
    empty,
    figure,
    room_for_labels,
    show,
    whole_steps,
)
from workbench.plots.alignment import layer_order
from workbench.records import AblationRow, DoseRow

_MISSING = "The coordinator has not been measured yet: every few steps (coordinator_every)."


def coordinator_norms(coordinator: pd.DataFrame) -> go.Figure:
    """‖ΔW‖/‖W‖ of each layer over time. `coordinator`: frame "coordinator".

    A layer's value is taken over all its matrices together: √Σ‖ΔW‖² / √Σ‖W‖².
    """
    title = "Size of the coordinator by layer: ‖ΔW‖ / ‖W‖"
    if coordinator.empty:
        return empty(title, _MISSING)
    squares = coordinator.assign(
        delta=coordinator["delta_norm"] ** 2, weight=coordinator["weight_norm"] ** 2
    )
    totals = squares.groupby(["layer", "step"])[["delta", "weight"]].sum()
    ratio = np.sqrt(totals["delta"] / totals["weight"])
    layers = layer_order(list(coordinator["layer"].unique()))
    drawn = figure(title, y="‖ΔW‖ / ‖W‖")
    for layer, colour in zip(layers, _shades(len(layers)), strict=True):
        line = ratio[layer].sort_index()
        drawn.add_trace(
            go.Scatter(
                x=line.index.to_numpy(),
                y=line.to_numpy(),
                name=show(layer),
                mode="lines+markers",
                marker={"size": 5},
                line={"color": colour, "width": 2},
                hovertemplate="%{y:.3~g}",
            )
        )
    drawn.update_layout(hovermode="x unified", showlegend=len(layers) <= 12)
    drawn.update_yaxes(rangemode="tozero")
    steps = coordinator["step"]
    whole_steps(drawn, int(steps.min()), int(steps.max()))
    return drawn


def effective_ranks(coordinator: pd.DataFrame) -> go.Figure:
    """How many directions each layer's ΔW uses, over time. `coordinator`: frame "coordinator".

    A layer's value is the mean over its matrices; hover says their range. Near 1 the coordinator
    writes along one direction of each matrix; it cannot exceed the rank it was given.
    """
    title = "Effective rank of ΔW by layer"
    measured = coordinator.dropna(subset="effective_rank")
    if measured.empty:
        return empty(title, _MISSING)
    spread = measured.groupby(["layer", "step"])["effective_rank"].agg(["mean", "min", "max"])
    drawn = figure(title, y="effective rank")
    layers = layer_order(list(measured["layer"].unique()))
    for layer, colour in zip(layers, _shades(len(layers)), strict=True):
        line = spread.loc[layer].sort_index()
        drawn.add_trace(
            go.Scatter(
                x=line.index.to_numpy(),
                y=line["mean"].to_numpy(),
                name=show(layer),
                mode="lines+markers",
                marker={"size": 5},
                line={"color": colour, "width": 2},
                customdata=line[["min", "max"]].to_numpy(),
                hovertemplate="%{y:.2f} (%{customdata[0]:.2f} to %{customdata[1]:.2f})",
            )
        )
    drawn.update_layout(hovermode="x unified", showlegend=len(layers) <= 12)
    whole_steps(drawn, int(measured["step"].min()), int(measured["step"].max()))
    return drawn


def _shades(n: int) -> list[str]:
    """One colour a layer, dark to light."""
    places = np.linspace(0.25, 0.85, n) if n > 1 else [0.4]
    return sample_colorscale("Viridis", list(places))


def singular_values(coordinator: pd.DataFrame, step: int | None = None) -> go.Figure:
    """The largest singular values of ΔW, matrix × rank, at one step.

    `coordinator`: frame "coordinator". `step`: the newest measurement at or before it (None: the
    newest). One bright column at the left: the coordinator writes along one direction.
    """
    title = "Singular values of ΔW"
    if step is not None:
        coordinator = coordinator[coordinator["step"] <= step]
    if coordinator.empty:
        return empty(title, _MISSING)
    rows = coordinator[coordinator["step"] == coordinator["step"].max()]
    at = int(rows["step"].iloc[0])
    order = {layer: place for place, layer in enumerate(layer_order(list(rows["layer"].unique())))}
    rows = rows.sort_values("layer", key=lambda names: names.map(order), kind="stable")
    rank = max(len(values) for values in rows["singular_values"])
    z = np.full((len(rows), rank), np.nan)
    for place, values in enumerate(rows["singular_values"]):
        z[place, : len(values)] = values
    drawn = figure(f"{title} at step {at}", x="singular value number")
    drawn.add_trace(
        go.Heatmap(
            x=list(range(1, rank + 1)),
            y=[show(module.replace("layers.", "")) for module in rows["module"]],
            z=z,
            colorscale="Viridis",
            colorbar={"thickness": 10},
            customdata=np.repeat(rows["effective_rank"].to_numpy()[:, None], rank, axis=1),
            hovertemplate="%{y}, number %{x}: %{z:.3~g}<br>effective rank %{customdata:.2f}"
            "<extra></extra>",
        )
    )
    room_for_labels(drawn)
    drawn.update_xaxes(showgrid=False, dtick=1 if rank <= 16 else None)
    drawn.update_yaxes(showgrid=False, type="category", tickfont={"size": 10})
    return drawn


def singular_values_over_time(coordinator: pd.DataFrame, module: str) -> go.Figure:
    """The singular values of one matrix's ΔW over time, largest first. Frame "coordinator"."""
    title = f"Singular values of ΔW of {show(module)}"
    rows = coordinator[coordinator["module"] == module].sort_values("step")
    if rows.empty:
        return empty(title, _MISSING)
    values = pd.DataFrame(list(rows["singular_values"]), index=rows["step"])
    drawn = figure(title, y="singular value")
    shades = sample_colorscale("Viridis", list(np.linspace(0.25, 0.9, values.shape[1])))
    for number, colour in zip(values.columns, shades, strict=True):
        drawn.add_trace(
            go.Scatter(
                x=values.index.to_numpy(),
                y=values[number].to_numpy(),
                name=str(number + 1),
                mode="lines",
                line={"color": colour, "width": 2 if number == 0 else 1},
                hovertemplate="%{y:.3~g}",
            )
        )
    drawn.update_layout(hovermode="x unified", showlegend=False)
    whole_steps(drawn, int(rows["step"].min()), int(rows["step"].max()))
    return drawn


def logprob_difference(
    tokens: Sequence[str],
    difference: Sequence[float],
    kl: Sequence[float],
    title: str = "What the coordinator changes, token by token",
) -> go.Figure:
    """What the coordinator, or another policy, changes at each token of one text.

    `tokens`, `difference` (log π with it − log π without, nats) and `kl` (nats, at the same
    position) have one entry a token: `other.tokens`, `logprob_difference` and `kl` of a
    CoordinatorEffect. Bars up: the coordinator made the token likelier. Empty `kl`: not measured.
    """
    if not tokens:
        return empty(title, "Compare two scales to see which tokens the coordinator changes.")
    values = np.asarray(difference, dtype=float)
    places = list(range(len(tokens)))
    labels = [show(token.replace(" ", "·")) for token in tokens]
    drawn = figure(title, x="token", y="nats")
    drawn.add_trace(
        go.Bar(
            x=places,
            y=values,
            marker={"color": np.where(values >= 0, JOINT, AGAINST), "line": {"width": 0}},
            name="log-prob difference",
            text=labels,
            textposition="none",
            hovertemplate="%{text}: %{y:+.3f} nats<extra></extra>",
        )
    )
    if len(kl):
        drawn.add_trace(
            go.Scatter(
                x=places,
                y=np.asarray(kl, dtype=float),
                mode="lines+markers",
                line={"color": COORDINATOR, "width": 1.5, "shape": "hvh"},
                marker={"size": 4},
                name="KL at the position",
                text=labels,
                hovertemplate="%{text}: KL %{y:.3f} nats<extra></extra>",
            )
        )
    drawn.add_hline(y=0, line={"color": MUTED, "width": 1})
    drawn.update_layout(showlegend=len(kl) > 0, bargap=0.15)
    if len(tokens) <= 120:
        drawn.update_xaxes(
            tickmode="array", tickvals=places, ticktext=labels, tickangle=0, showgrid=False
        )
    return drawn


def dose_response(rows: Sequence[DoseRow]) -> go.Figure:
    """Reward gained by the coordinator at each scale. `rows`: `Session.dose_response()`.

    Each line is a difference of rewards on the same problems and noise, with its 95 % interval: a
    band that stays clear of 0 is an effect, and 1 is the scale the run trains with.
    """
    title = "Reward gained by the coordinator, by its scale"
    if not rows:
        return empty(title, "Not measured yet: ask for it, here or by Session.dose_response.")
    rows = sorted(rows, key=lambda row: row.scale)
    drawn = figure(title, x="scale of the coordinator", y="difference of mean rewards")
    drawn.add_hline(y=0, line={"color": MUTED, "width": 1})
    drawn.add_vline(x=1, line={"color": MUTED, "width": 1, "dash": "dot"})
    scales = [row.scale for row in rows]
    if not np.isnan(rows[0].start_difference):
        _band(
            drawn,
            "against the start of the run",
            MUTED,
            scales,
            [(row.start_difference, row.start_low, row.start_high) for row in rows],
            [f"reward {row.reward:.3f} ± {row.reward_error:.3f}" for row in rows],
        )
    _band(
        drawn,
        "against off, scale 0",
        COORDINATOR,
        scales,
        [(row.difference, row.low, row.high) for row in rows],
        [
            f"reward {row.reward:.3f} ± {row.reward_error:.3f}<br>"
            f"{row.changed:.0%} of {row.n_problems} × {row.n_rollouts} texts differ from off"
            for row in rows
        ],
    )
    drawn.update_layout(showlegend=True)
    return drawn


def coordinator_ablation(rows: Sequence[AblationRow]) -> go.Figure:
    """What each layer's coordinator is worth. `rows`: `Session.coordinator_ablation()`.

    Above: how far switching it off moves the distributions. Below: the reward it earns, with a 95 %
    interval; blue or vermilion where that excludes 0. 'all' is the whole coordinator.
    """
    title = "One layer's coordinator off at a time"
    if not rows:
        return empty(
            title, "Not measured yet: ask for it, here or by Session.coordinator_ablation."
        )
    places = {layer: at for at, layer in enumerate(layer_order([row.layer for row in rows]))}
    rows = sorted(rows, key=lambda row: (row.layer != "all", places[row.layer]))
    names = [show(row.layer.replace("layers.", "layer ")) for row in rows]
    drawn = figure(title, x="")
    drawn.add_trace(
        go.Bar(
            x=names,
            y=[row.kl for row in rows],
            error_y={
                "array": [1.96 * row.kl_standard_error for row in rows],
                "color": TEXT,
                "thickness": 1,
            },
            marker={"color": [MUTED if row.layer == "all" else COORDINATOR for row in rows]},
            customdata=[f"{row.changed:.0%} of texts differ" for row in rows],
            hovertemplate="%{x} off: KL %{y:.3~g} nats a token<br>%{customdata}<extra></extra>",
            yaxis="y2",
        )
    )
    drawn.add_trace(
        go.Scatter(
            x=names,
            y=[row.difference for row in rows],
            mode="markers",
            marker={
                "size": 8,
                "color": [
                    JOINT if row.low > 0 else AGAINST if row.high < 0 else MUTED for row in rows
                ],
            },
            error_y={
                "array": [row.high - row.difference for row in rows],
                "arrayminus": [row.difference - row.low for row in rows],
                "color": MUTED,
                "thickness": 1.2,
            },
            customdata=[
                f"{row.difference:+.3f}, 95 % interval {row.low:+.3f} to {row.high:+.3f}<br>"
                f"reward without it {row.reward:.3f}, {row.n_problems} × {row.n_rollouts} rollouts"
                for row in rows
            ],
            hovertemplate="%{x}: earns %{customdata}<extra></extra>",
        )
    )
    drawn.add_hline(y=0, line={"color": MUTED, "width": 1})
    drawn.update_layout(
        showlegend=False,
        yaxis={"domain": [0, 0.46], "title": {"text": "reward earned"}},
        yaxis2={
            "domain": [0.54, 1],
            "title": {"text": "KL, nats a token"},
            "anchor": "x",
            "rangemode": "tozero",
        },
    )
    drawn.update_xaxes(type="category", showgrid=False)
    return drawn


def _band(
    drawn: go.Figure,
    name: str,
    colour: str,
    x: list[float],
    values: list[tuple[float, float, float]],
    notes: list[str],
) -> None:
    """A line through (value, low, high) with its interval as a band."""
    value, low, high = zip(*values, strict=True)
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    drawn.add_trace(
        go.Scatter(
            x=[*x, *reversed(x)],
            y=[*high, *reversed(low)],
            mode="lines",
            fill="toself",
            fillcolor=f"rgba({red},{green},{blue},0.16)",
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
        )
    )
    drawn.add_trace(
        go.Scatter(
            x=x,
            y=value,
            name=name,
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"size": 6},
            customdata=[
                f"{v:+.3f}, 95 % interval {a:+.3f} to {b:+.3f}<br>{note}"
                for (v, a, b), note in zip(values, notes, strict=True)
            ],
            hovertemplate="scale %{x:g}, " + name + "<br>%{customdata}<extra></extra>",
        )
    )
