"""How long prompts and demonstrations are."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from workbench.plots._theme import COORDINATOR, JOINT, MUTED, SFT, empty, figure

_BINS = 40
_COLOURS = {"train": JOINT, "validation": COORDINATOR, "hard": MUTED, "demonstrations": SFT}


def length_histogram(data: pd.DataFrame) -> go.Figure:
    """Lengths in tokens: prompts of each split, and solutions of the demonstrations.

    `data`: `Session.data()`.
    """
    title = "Lengths"
    if data.empty:
        return empty(title, "The task has no data.")
    solutions = data["solution_tokens"].where(data["split"] == "demonstrations")
    lengths = solutions.fillna(data["prompt_tokens"])
    first, last = int(lengths.min()), int(lengths.max()) + 1
    width = -(-(last - first) // _BINS)  # the same whole number for all: bars can be compared
    bins = {"start": first - 0.5, "end": first - 0.5 + width * _BINS, "size": width}
    drawn = figure(title, x="tokens", y="share of texts")
    for split, part in data.groupby("split", sort=False):
        name = "demonstrations' solutions" if split == "demonstrations" else f"{split} prompts"
        drawn.add_trace(
            go.Histogram(
                x=lengths[part.index].to_numpy(),
                name=name,
                histnorm="probability",
                marker={"color": _COLOURS[str(split)]},
                opacity=0.6,
                xbins=bins,
                hovertemplate="%{x} tokens: %{y:.1%}<extra>" + name + "</extra>",
            )
        )
    drawn.update_yaxes(tickformat=".0%")
    return drawn.update_layout(barmode="overlay")
