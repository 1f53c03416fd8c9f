"""Alignment of the SFT gradient with the RL gradient: over time, by layer, by demonstration."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.plots._theme import (
    AGAINST,
    COLORWAY,
    COORDINATOR,
    DIVERGING,
    JOINT,
    MUTED,
    SFT,
    TEXT,
    empty,
    figure,
    log_axis,
    newest,
    paragraph,
    room_for_labels,
    show,
    thinned,
    whole_steps,
)

Part = Literal["base", "coordinator", "gain"]

_SYMBOL = {"base": "θ", "coordinator": "w", "gain": "w"}
_PAIR = {
    "base": "cos(SFT, RL) over θ",
    "coordinator": "cos(SFT, RL) over w",
    "gain": "cos(RL joint, RL-only) over w",
}
_MISSING = "No gradient alignment yet: it comes with each step (alignment_every)."
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross")


def layer_order(layers: list[str]) -> list[str]:
    """Layer names in network order: embed, layers.0, layers.1, …, norm, lm_head, others."""

    def place(layer: str) -> tuple[int, int, str]:
        head, _, number = layer.partition(".")
        if head == "layers":
            return 1, int(number), ""
        return {"embed": 0, "norm": 2, "lm_head": 3}.get(layer, 4), 0, layer

    return sorted(layers, key=place)


def alignment_over_time(alignment: pd.DataFrame, part: Part = "base") -> go.Figure:
    """The overall cosine at each step, with its noise band shaded.

    `alignment`: frame "alignment". A filled point left the band: blue agrees, vermilion conflicts.
    A hollow point lies inside it and says nothing. Where no band is known a point has no verdict.
    """
    title = f"{_PAIR[part]} over time"
    rows = alignment[(alignment["part"] == part) & (alignment["layer"] == "all")]
    rows = rows[rows["cosine"].notna()].sort_values("step")
    if rows.empty:
        return empty(title, _MISSING)
    rows, cut = thinned(rows, ["cosine"])
    drawn = figure(title + cut, y="cosine")
    known = rows[rows["noise"].notna()]
    band = known["noise"].clip(upper=1.0)  # no cosine is larger
    if not known.empty:
        drawn.add_trace(
            go.Scatter(
                x=[*known["step"], *known["step"][::-1]],
                y=[*band, *-band[::-1]],
                fill="toself",
                fillcolor="rgba(139,147,161,0.22)",
                line={"width": 0},
                mode="lines",
                name="noise band",
                hoverinfo="skip",
            )
        )
    drawn.add_trace(
        go.Scatter(
            x=rows["step"].to_numpy(),
            y=rows["cosine"].to_numpy(),
            mode="lines",
            line={"color": MUTED, "width": 1},
            showlegend=False,
            hoverinfo="skip",
        )
    )
    unknown = rows["noise"].isna()
    inside = rows["cosine"].abs() <= rows["noise"]
    outside = ~inside & ~unknown
    groups = (
        ("agree", JOINT, "circle", outside & (rows["cosine"] >= 0)),
        ("conflict", AGAINST, "diamond", outside & (rows["cosine"] < 0)),
        ("inside the noise", MUTED, "circle-open", inside),
        ("no noise band", COORDINATOR, "circle", unknown),
    )
    for name, colour, symbol, mask in groups:
        if name == "no noise band" and not mask.any():
            continue
        drawn.add_trace(
            go.Scatter(
                x=rows["step"][mask].to_numpy(),
                y=rows["cosine"][mask].to_numpy(),
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 8},
                name=name,
                text=[_band_text(row) for row in rows[mask].itertuples()],
                hovertemplate="step %{x}: %{y:.3f}%{text}<extra></extra>",
            )
        )
    drawn.add_hline(y=0, line={"color": MUTED, "width": 1})
    whole_steps(drawn, int(rows["step"].min()), int(rows["step"].max()))
    return drawn


def _band_text(row: Any) -> str:
    """The noise band of a row of frame "alignment", and what it was made of, for a hover box."""
    if np.isnan(row.noise):
        return ""
    if np.isnan(row.dof):  # of a run before the errors had degrees of freedom
        return f", noise ±{row.noise:.3f} (from two halves)"
    few = ": few, so the band is wide" if row.dof < 3 else ""
    return f", noise ±{row.noise:.3f} (95 %, {row.dof:.0f} degrees of freedom{few})"


def alignment_heatmap(
    alignment: pd.DataFrame, part: Part = "base", most_steps: int = 100
) -> go.Figure:
    """The cosine of each layer at each step; hollow dots mark cells inside the noise band.

    `alignment`: frame "alignment". Layers are in network order, the input at the bottom. Only the
    newest `most_steps` measured steps are drawn.
    """
    title = f"{_PAIR[part]} by layer"
    rows = alignment[(alignment["part"] == part) & (alignment["layer"] != "all")]
    if rows.empty:
        return empty(title, _MISSING)
    rows, cut = newest(rows, most_steps)
    title += cut
    layers = layer_order(list(rows["layer"].unique()))
    steps = sorted(rows["step"].unique())
    cosine = rows.pivot(index="layer", columns="step", values="cosine").reindex(layers)
    rows = rows.assign(band=[_band_text(row) for row in rows.itertuples()])
    band = rows.pivot(index="layer", columns="step", values="band").reindex(layers)
    z = cosine.to_numpy(dtype=float)
    bound = max(float(np.nanmax(np.abs(z))) if np.isfinite(z).any() else 0.0, 0.05)
    drawn = figure(title)
    drawn.add_trace(
        go.Heatmap(
            x=steps,
            y=[show(layer) for layer in layers],
            z=z,
            zmin=-bound,
            zmax=bound,
            colorscale=DIVERGING,
            text=band.to_numpy(),
            hovertemplate="%{y}, step %{x}<br>cosine %{z:.3f}%{text}<extra></extra>",
            colorbar={"thickness": 10, "title": {"text": "cosine", "side": "right"}},
        )
    )
    quiet = rows[rows["cosine"].abs() <= rows["noise"]]
    drawn.add_trace(
        go.Scatter(
            x=quiet["step"].to_numpy(),
            y=[show(layer) for layer in quiet["layer"]],
            mode="markers",
            marker={"symbol": "circle-open", "size": 4, "color": TEXT},
            name="inside the noise band",
            hoverinfo="skip",
            showlegend=not quiet.empty,
        )
    )
    room_for_labels(drawn)
    drawn.update_xaxes(showgrid=False)
    drawn.update_yaxes(showgrid=False, type="category")
    if len(steps) <= 10:
        drawn.update_xaxes(dtick=1)
    return drawn


def norm_ratio(alignment: pd.DataFrame) -> go.Figure:
    """‖g^S‖ / ‖g^R‖ over θ and over w, on a log axis. `alignment`: frame "alignment".

    Far above 1 the demonstrations drown RL; far below, RL drowns the demonstrations.
    """
    title = "Size of the SFT gradient over the RL gradient"
    rows = alignment[(alignment["layer"] == "all") & (alignment["part"] != "gain")]
    if rows.empty:
        return empty(title, _MISSING)
    drawn = figure(title, y="‖g SFT‖ / ‖g RL‖")
    for part, colour in (("base", JOINT), ("coordinator", COORDINATOR)):
        chosen = rows[(rows["part"] == part) & (rows["second_norm"] > 0)].sort_values("step")
        chosen = chosen.assign(ratio=chosen["first_norm"] / chosen["second_norm"])
        if not chosen.empty:
            chosen, _ = thinned(chosen, ["ratio"])
            drawn.add_trace(
                go.Scatter(
                    x=chosen["step"].to_numpy(),
                    y=chosen["ratio"].to_numpy(),
                    name=_SYMBOL[part],
                    mode="lines+markers",
                    marker={"size": 4},
                    line={"color": colour, "width": 2},
                    hovertemplate="%{y:.3~g}",
                )
            )
    drawn.add_hline(y=1, line={"color": MUTED, "width": 1})
    log_axis(drawn, [value for trace in drawn.data for value in trace.y])
    drawn.update_layout(hovermode="x unified", showlegend=True)
    whole_steps(drawn, int(rows["step"].min()), int(rows["step"].max()))
    return drawn


def conflict_share(alignment: pd.DataFrame) -> go.Figure:
    """Share of layers in conflict at each step, over θ and over w. `alignment`: frame "alignment".

    Conflict: inner product below zero and outside the noise band.
    """
    title = "Share of layers in conflict"
    rows = alignment[(alignment["layer"] != "all") & (alignment["part"] != "gain")]
    if rows.empty:
        return empty(title, _MISSING)
    drawn = figure(title, y="share of layers")
    for part, colour in (("base", JOINT), ("coordinator", COORDINATOR)):
        shares = rows[rows["part"] == part].groupby("step")["conflict"].mean().astype(float)
        if not shares.empty:
            shares = thinned(shares.to_frame(), ["conflict"])[0]["conflict"]
            drawn.add_trace(
                go.Scatter(
                    x=shares.index.to_numpy(),
                    y=shares.to_numpy(),
                    name=_SYMBOL[part],
                    mode="lines+markers",
                    marker={"size": 4},
                    line={"color": colour, "width": 2, "shape": "hv"},
                    hovertemplate="%{y:.0%}",
                )
            )
    drawn.update_yaxes(range=[-0.03, 1.03], tickformat=".0%")
    drawn.update_layout(hovermode="x unified", showlegend=True)
    whole_steps(drawn, int(rows["step"].min()), int(rows["step"].max()))
    return drawn


def gain_signal(alignment: pd.DataFrame) -> go.Figure:
    """‖g^R_w‖, ‖ĝ_w‖ and the norm of their difference, which is what the coordinator follows.

    `alignment`: frame "alignment", part "gain".
    """
    title = "The gain signal: RL gradients over w"
    rows = alignment[(alignment["part"] == "gain") & (alignment["layer"] == "all")]
    rows = rows.sort_values("step")
    if rows.empty:
        return empty(title, "No gain signal yet: the method `bridge` measures it at each step.")
    first, last = int(rows["step"].min()), int(rows["step"].max())
    rows, cut = thinned(rows, ["first_norm", "second_norm", "difference_norm"])
    drawn = figure(title + cut, y="norm")
    lines = (
        ("first_norm", "joint", JOINT),
        ("second_norm", "RL-only", COLORWAY[1]),
        ("difference_norm", "difference = gain signal", COORDINATOR),
    )
    for column, label, colour in lines:
        drawn.add_trace(
            go.Scatter(
                x=rows["step"].to_numpy(),
                y=rows[column].to_numpy(),
                name=label,
                mode="lines+markers",
                marker={"size": 4},
                line={"color": colour, "width": 2},
                hovertemplate="%{y:.3~g}",
            )
        )
    drawn.update_layout(hovermode="x unified")
    drawn.update_yaxes(rangemode="tozero")
    whole_steps(drawn, first, last)
    return drawn


def demonstrations_scatter(
    demonstrations: pd.DataFrame, step: int | None = None, reveal_quality: bool = False
) -> go.Figure:
    """Each demonstration's RL alignment against its loss, at its newest visit.

    `demonstrations`: frame "demonstrations". `step`: visits up to it (None: all). Above zero, the
    demonstration pushes θ where RL wants it to go. `reveal_quality` colours by the hidden tag,
    which training never sees; off by default, so that the measurement is judged before the answer
    is known. Custom data: demonstration_id.
    """
    title = "Does each demonstration push with RL?"
    if step is not None:
        demonstrations = demonstrations[demonstrations["step"] <= step]
    visits = demonstrations[demonstrations["rl_alignment"].notna()]
    if visits.empty:
        return empty(title, _MISSING)
    last_visits = visits.sort_values("step", kind="stable").drop_duplicates(
        "demonstration_id", keep="last"
    )
    drawn = figure(title, x="loss of the demonstration, nats a token", y="cos(demonstration, RL)")
    if reveal_quality:
        kinds = sorted(last_visits["quality"].unique(), key=lambda q: (q != "clean", q))
        groups = [
            (show(kind), COLORWAY[(at + 2) % 8], _SYMBOLS[at % len(_SYMBOLS)], kind)
            for at, kind in enumerate(kinds)
        ]
        groups = [
            (label, colour, mark, last_visits["quality"] == k) for label, colour, mark, k in groups
        ]
    else:
        helps = last_visits["rl_alignment"] >= 0
        groups = [
            ("pushes with RL", JOINT, "circle", helps),
            ("pushes against RL", AGAINST, "diamond", ~helps),
        ]
    for label, colour, mark, mask in groups:
        part = last_visits[mask]
        drawn.add_trace(
            go.Scatter(
                x=part["loss"].to_numpy(),
                y=part["rl_cosine"].to_numpy(),
                mode="markers",
                marker={"color": colour, "symbol": mark, "size": 8, "opacity": 0.75},
                name=f"{label} ({len(part)})",
                text=[_demonstration_hover(row) for row in part.itertuples()],
                customdata=part["demonstration_id"].to_numpy(),
                hovertemplate="%{text}<extra></extra>",
            )
        )
    drawn.add_hline(y=0, line={"color": MUTED, "width": 1})
    drawn.update_layout(showlegend=True)
    return drawn


def _demonstration_hover(row: Any) -> str:
    return (
        f"<b>{paragraph(row.prompt, 48, 3)}</b><br>{paragraph(row.solution, 48, 6)}<br>"
        f"step {row.step} · inner product {row.rl_alignment:+.3g} · cosine {row.rl_cosine:+.3f}"
        f"<br>loss {row.loss:.3f} · {row.n_tokens} tokens · ‖g‖ {row.grad_norm:.3g}"
    )


def demonstrations_over_time(demonstrations: pd.DataFrame) -> go.Figure:
    """Median and middle half of the per-demonstration cosine with RL, step by step.

    `demonstrations`: frame "demonstrations".
    """
    title = "cos(demonstration, RL): median, middle half"
    rows = demonstrations[demonstrations["rl_cosine"].notna()]
    if rows.empty:
        return empty(title, _MISSING)
    spread = rows.groupby("step")["rl_cosine"].quantile([0.25, 0.5, 0.75]).unstack()
    spread, cut = thinned(spread, [0.25, 0.5, 0.75])
    steps = list(spread.index)
    drawn = figure(title + cut, y="cosine")
    drawn.add_trace(
        go.Scatter(
            x=[*steps, *steps[::-1]],
            y=[*spread[0.75], *spread[0.25][::-1]],
            fill="toself",
            fillcolor="rgba(18,163,122,0.2)",
            line={"width": 0},
            mode="lines",
            name="middle half",
            hoverinfo="skip",
        )
    )
    drawn.add_trace(
        go.Scatter(
            x=steps,
            y=spread[0.5].to_numpy(),
            name="median",
            mode="lines+markers",
            marker={"size": 4},
            line={"color": SFT, "width": 2},
            hovertemplate="step %{x}: %{y:.3f}<extra></extra>",
        )
    )
    drawn.add_hline(y=0, line={"color": MUTED, "width": 1})
    whole_steps(drawn, int(min(steps)), int(max(steps)))
    return drawn
