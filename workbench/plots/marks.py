"""What was done to a run, and what was found in it, marked on its curves."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from workbench.plots._theme import AGAINST, MUTED, show

_COLOURS = {"note": MUTED, "warning": "#e69f00", "critical": AGAINST}
_MARKED = ("set", "set_aside", "take_back", "rewind", "fork")
"""Commands drawn on the curves; run, pause and save change no number."""
MOST_MARKS = 30
"""Steps marked for their findings: more could not be told apart, and each draw makes them anew."""


def mark_commands(drawn: go.Figure, commands: pd.DataFrame) -> None:
    """Mark what was done to a run as dashed vertical lines with labels.

    `commands`: frame "commands". One line a step; a command stands between the step it followed
    and the next one.
    """
    done = commands[commands["name"].isin(_MARKED) & (commands["outcome"] == "done")]
    shapes, annotations = [], []
    for step, rows in done.groupby("step"):
        label = ", ".join(
            _command_label(name, arguments)
            for name, arguments in zip(rows["name"], rows["arguments"], strict=True)
        )
        x = int(step) + 0.5
        shapes.append(_line(x, MUTED, "dash"))
        annotations.append(
            {
                "x": x,
                "y": 1,
                "yref": "paper",
                "xanchor": "left",
                "yanchor": "top",
                "text": show(label, 28),
                "hovertext": show(label),
                "showarrow": False,
                "textangle": 90,
                "font": {"size": 10, "color": MUTED},
            }
        )
    drawn.update_layout(shapes=shapes, annotations=annotations)


def mark_findings(
    drawn: go.Figure, findings: pd.DataFrame, columns: Collection[str] | None = None
) -> None:
    """Mark findings at their onset by a dotted line and a triangle at the foot, with the sentence.

    `findings`: frame "findings". columns: only those whose evidence names one of these metrics;
    None: all but notes. Where many steps have some, the worst and of these the earliest are marked.
    """
    told: dict[int, list[dict[str, Any]]] = {}
    for row in findings.to_dict("records"):
        about = row["evidence"].get("metric")
        if about in columns if columns is not None else row["severity"] != "note":
            told.setdefault(row["since"] or row["step"], []).append(row)
    rank = {severity: i for i, severity in enumerate(_COLOURS)}
    worst = {x: max(rank.get(row["severity"], 0) for row in rows) for x, rows in told.items()}
    chosen = sorted(told, key=lambda x: (-worst[x], x))[:MOST_MARKS]
    shapes, annotations = list(drawn.layout.shapes), list(drawn.layout.annotations)
    for x in sorted(chosen):
        colour = list(_COLOURS.values())[worst[x]]
        shapes.append(_line(x, colour, "dot"))
        lines = [show(f"{row['severity']}: {row['message']}") for row in told[x]]
        annotations.append(
            {
                "x": x,
                "y": 0,
                "yref": "paper",
                "yanchor": "bottom",
                "text": "▲",
                "hovertext": "<br>".join(lines),
                "showarrow": False,
                "font": {"size": 11, "color": colour},
            }
        )
    drawn.update_layout(shapes=shapes, annotations=annotations)


def _line(x: float, colour: str, dash: str) -> dict[str, Any]:
    """A vertical line over the whole height."""
    line = {"color": colour, "width": 1, "dash": dash}
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": line}


def _command_label(name: str, arguments: dict[str, object]) -> str:
    if name == "set":
        return " ".join(f"{key}={value}" for key, value in arguments.items())
    return " ".join([name.replace("_", " "), *(str(value) for value in arguments.values())])
