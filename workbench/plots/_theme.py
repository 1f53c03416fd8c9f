"""One look for every figure: colours, template, escaping, and what to draw for nothing."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.extremes import extremes

JOINT = "#0a86cf"
"""The joint policy θ+w, and anything that helps."""
BASELINE = "#e69f00"
"""The RL-only baseline θ̂+w."""
SFT = "#12a37a"
"""Demonstrations."""
AGAINST = "#d55e00"
"""Anything that hurts or conflicts."""
COORDINATOR = "#b568a0"
"""The coordinator w."""
MUTED = "#8b93a1"
"""Undecided, blanked, inside the noise."""
TEXT = "#747a86"
"""Readable on white and on near-black alike (contrast above 4 on both)."""

COLORWAY = [JOINT, BASELINE, SFT, AGAINST, COORDINATOR, "#56b4e9", "#8a6d3b", MUTED]
"""Derived from Okabe and Ito's palette: told apart with every common colour blindness."""

DIVERGING = [
    [0.0, "rgb(168,62,0)"],
    [0.25, "rgb(230,140,75)"],
    [0.5, "rgb(222,222,222)"],
    [0.75, "rgb(86,160,214)"],
    [1.0, "rgb(0,84,147)"],
]
"""Vermilion (below zero), grey (zero), blue (above zero)."""

_GRID = "rgba(128,136,150,0.20)"
_AXIS = {
    "gridcolor": _GRID,
    "linecolor": "rgba(128,136,150,0.45)",
    "zeroline": False,
    "automargin": True,
    "title": {"standoff": 6, "font": {"size": 11}},
    "tickfont": {"size": 11},
}

TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, 'Segoe UI', Roboto, sans-serif", "size": 12, "color": TEXT},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "colorway": COLORWAY,
        "title": {
            "x": 0.0,
            "xanchor": "left",
            "xref": "container",
            "y": 1.0,
            "yanchor": "top",
            "yref": "container",
            "pad": {"l": 8, "t": 10},
        },
        "title_font": {"size": 13},
        "margin": {"l": 58, "r": 14, "t": 56, "b": 40, "autoexpand": False},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "legend": {
            "orientation": "h",
            "x": 0.0,
            "xanchor": "left",
            "y": 1.0,
            "yanchor": "bottom",
            "font": {"size": 10.5},
            "bgcolor": "rgba(0,0,0,0)",
            "tracegroupgap": 0,
        },
        "hoverlabel": {
            "bgcolor": "#1d2431",
            "bordercolor": "#556074",
            "font": {"color": "#f2f4f8", "size": 12},
            "align": "left",
            "namelength": -1,
        },
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": MUTED, "activecolor": TEXT},
        "colorscale": {"diverging": DIVERGING, "sequential": "Viridis"},
    }
)


def show(text: str, width: int | None = None) -> str:
    """Text of a model or of data, safe inside a figure: line breaks as ↵, cut to `width`.

    Plotly reads a few tags, entities and $…$ as markup; all of them are written as entities here.
    """
    text = text.replace("\n", "↵").replace("\t", "⇥")
    if width is not None and len(text) > width:
        text = text[: width - 1] + "…"
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("$", "&#36;")


def paragraph(text: str, width: int = 60, lines: int = 8) -> str:
    """Text for a hover box: escaped, its line breaks kept, long lines wrapped, long texts cut."""
    rows = [
        row[at : at + width]
        for row in text.strip("\n").split("\n")
        for at in range(0, max(len(row), 1), width)
    ]
    if len(rows) > lines:
        rows = [*rows[:lines], "…"]
    return "<br>".join(show(row) for row in rows)


def figure(title: str, x: str = "step", y: str = "") -> go.Figure:
    """An empty figure in the house's look. `uirevision` is constant: a zoom survives an update."""
    return go.Figure(
        layout={
            "template": TEMPLATE,
            "title": {"text": title},
            "xaxis": {"title": {"text": x}},
            "yaxis": {"title": {"text": y}},
            "uirevision": "kept",
        }
    )


def empty(title: str, message: str) -> go.Figure:
    """A figure that says what is missing and how to get it, in lines that fit a small one."""
    drawn = figure(title, x="")
    hidden = {"visible": False, "range": [0, 1]}
    drawn.update_layout(xaxis=hidden, yaxis=hidden, margin={"l": 14, "r": 14}, uirevision="empty")
    lines = textwrap.wrap(message, 34, break_long_words=False, break_on_hyphens=False)
    drawn.add_annotation(
        text="<br>".join(lines),
        x=0.5,
        y=0.5,
        xref="paper",
        yref="paper",
        showarrow=False,
        font={"size": 12.5},
    )
    return drawn


def newest(rows: pd.DataFrame, most_steps: int) -> tuple[pd.DataFrame, str]:
    """The rows of the newest `most_steps` measured steps, and what to add to the title.

    A figure with a mark for each cell grows with the run; a browser must stay able to redraw it.
    """
    steps = sorted(rows["step"].unique())
    if len(steps) <= most_steps:
        return rows, ""
    return rows[rows["step"] >= steps[-most_steps]], f", last {most_steps} measured steps"


def thinned(
    rows: pd.DataFrame, columns: Sequence[Any], most: int = 600
) -> tuple[pd.DataFrame, str]:
    """At most some `most` of the rows, one a step in order, and what to add to the title.

    Of each few neighbouring rows those stay that hold the lowest or highest value of a column, and
    the first and last row of all: no spike is lost and no value is made up. A browser is sent the
    figure with each step, so it must not grow with the run.
    """
    if len(rows) <= most:
        return rows, ""
    each = -(-2 * len(columns) * len(rows) // most)
    kept = extremes(rows, columns, np.arange(len(rows)) // each)
    return rows.iloc[kept], ", thinned"


def log_axis(drawn: go.Figure, values: Iterable[float]) -> None:
    """A logarithmic y axis for such values: ticks at 1, 2 and 5 of few decades, at 1 of some."""
    positive = [value for value in values if 0 < value < np.inf]
    decades = np.log10(max(positive) / min(positive)) if positive else 0.0
    ticks = "D2" if decades < 3 else int(np.ceil(decades / 6))
    drawn.update_yaxes(type="log", exponentformat="power", dtick=ticks)


def room_for_labels(drawn: go.Figure) -> None:
    """Let long tick labels and colour bars widen the margins; other figures have fixed ones.

    Fixed margins keep small figures of one row alike, whatever their legends and numbers are.
    """
    drawn.update_layout(margin={"autoexpand": True})


def whole_steps(drawn: go.Figure, first: int, last: int) -> None:
    """Tick only whole steps while there are few of them.

    No axis range is set: Plotly drops a person's zoom where a figure sets another range.
    """
    if last - first <= 10:
        room = [first - 0.5, max(last, first + 4) + 0.5]
        drawn.update_xaxes(dtick=1, autorangeoptions={"include": room})
