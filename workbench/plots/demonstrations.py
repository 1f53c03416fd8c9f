"""One demonstration over its visits: what it contributed, and its loss."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.plots._theme import AGAINST, JOINT, MUTED, SFT, empty, figure, show, whole_steps


def demonstration_visits(demonstrations: pd.DataFrame, demonstration_id: str) -> go.Figure:
    """Above: ⟨g, g^R⟩ at each visit as bars, and their sum so far ± 1 standard error. Below: loss.

    `demonstrations`: frame "demonstrations". The error is that of the ledger: the spread over the
    visits, times their number.
    """
    title = f"Visits of {show(demonstration_id)}"
    visits = demonstrations[demonstrations["demonstration_id"] == demonstration_id]
    visits = visits.sort_values("step", kind="stable")
    if visits.empty:
        return empty("Visits of a demonstration", "Click a demonstration to see its visits.")
    drawn = figure(title)
    steps = visits["step"].to_numpy()
    known = visits[visits["rl_alignment"].notna()]
    values = known["rl_alignment"]
    total = values.cumsum()
    number = np.arange(1, len(values) + 1)
    error = (values.expanding().std() / np.sqrt(number) * number).to_numpy()
    drawn.add_trace(
        go.Bar(
            x=known["step"].to_numpy(),
            y=values.to_numpy(),
            marker={"color": np.where(values >= 0, JOINT, AGAINST), "line": {"width": 0}},
            width=0.8,
            name="at the visit",
            hovertemplate="step %{x}: %{y:+.3~g}<extra></extra>",
            yaxis="y2",
        )
    )
    drawn.add_trace(
        go.Scatter(
            x=known["step"].to_numpy(),
            y=total.to_numpy(),
            error_y={"array": np.nan_to_num(error), "color": MUTED, "thickness": 1.2},
            mode="lines+markers",
            line={"color": MUTED, "width": 1.5},
            marker={"size": 5},
            name="sum so far",
            hovertemplate="sum up to step %{x}: %{y:+.3~g}<extra></extra>",
            yaxis="y2",
        )
    )
    drawn.add_trace(
        go.Scatter(
            x=steps,
            y=visits["loss"].to_numpy(),
            mode="lines+markers",
            line={"color": SFT, "width": 2},
            marker={"size": 6},
            name="loss",
            hovertemplate="step %{x}: loss %{y:.3f} nats a token<extra></extra>",
        )
    )
    drawn.add_hline(y=0, line={"color": MUTED, "width": 1}, yref="y2")
    drawn.update_layout(
        showlegend=True,
        yaxis={"domain": [0, 0.42], "title": {"text": "loss"}, "rangemode": "tozero"},
        yaxis2={"domain": [0.52, 1], "title": {"text": "⟨g, g RL⟩"}, "anchor": "x"},
    )
    whole_steps(drawn, int(steps.min()), int(steps.max()))
    return drawn
