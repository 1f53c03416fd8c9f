"""How long prompts and demonstrations are."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from workbench.plots._theme import COORDINATOR, JOINT, MUTED, SFT, empty, figure

_COLOURS = {"train": JOINT, "validation": COORDINATOR, "hard": MUTED, "demonstrations": SFT}


def length_histogram(data: pd.DataFrame) -> go.Figure:
    """Lengths in tokens: prompts of each split, and solutions of the demonstrations.

    `data`: `Session.data()`.
    """
    title = "Lengths"
    if data.empty:
        return empty(title, "The task has no data.")
    drawn = figure(title, x="tokens", y="share of texts")
    for split, part in data.groupby("split", sort=False):
        column = "solution_tokens" if split == "demonstrations" else "prompt_tokens"
        name = "demonstrations' solutions" if split == "demonstrations" else f"{split} prompts"
        drawn.add_trace(
            go.Histogram(
                x=part[column].to_numpy(),
                name=name,
                histnorm="probability",
                marker={"color": _COLOURS[str(split)]},
                opacity=0.6,
                nbinsx=40,
                hovertemplate="%{x} tokens: %{y:.1%}<extra>" + name + "</extra>",
            )
        )
    return drawn.update_layout(barmode="overlay")
