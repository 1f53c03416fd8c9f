"""Token strips: a completion as HTML, each token coloured by one of its numbers, all on hover."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from workbench.plots._theme import AGAINST, BASELINE, COORDINATOR, JOINT, MUTED, SFT

Colouring = Literal[
    "probability",
    "entropy",
    "advantage",
    "ratio",
    "baseline_ratio",
    "kl",
    "coordinator_difference",
]
"""A column of a token frame."""

COLOURINGS: dict[str, Colouring] = {
    "probability": "probability",
    "entropy": "entropy",
    "advantage": "advantage",
    "ratio": "ratio",
    "ratio of the RL-only baseline": "baseline_ratio",
    "KL to the starting policy": "kl",
    "coordinator difference": "coordinator_difference",
}
"""What tokens can be coloured by: its name for people, and the column."""

_WRITERS = (SFT, COORDINATOR, BASELINE, JOINT)
"""Lines under what others than the policy wrote, by the writers' names in order."""

_NAMES = {column: name for name, column in COLOURINGS.items()}


@dataclass(frozen=True)
class _Scale:
    """How a number becomes a colour."""

    meaning: str
    low: str
    high: str
    full: float
    """Size at which the colour is full."""
    neutral: float = 0.0


_SCALES: dict[Colouring, _Scale] = {
    "probability": _Scale("probability of the token; the rarer, the stronger", AGAINST, AGAINST, 1),
    "entropy": _Scale("entropy of the policy before the token, nats", COORDINATOR, COORDINATOR, 2),
    "advantage": _Scale("advantage of the rollout, the same at each token", AGAINST, JOINT, 2),
    "ratio": _Scale("π recomputed / π when sampled; 1 is agreement", AGAINST, JOINT, 0.2, 1),
    "baseline_ratio": _Scale("π RL-only / π joint; 1 is no difference", AGAINST, JOINT, 0.5, 1),
    "kl": _Scale("KL estimate (k3) to the starting policy, nats", AGAINST, AGAINST, 0.5),
    "coordinator_difference": _Scale(
        "log π with the coordinator − log π without, nats", AGAINST, JOINT, 1
    ),
}


def visible(piece: str) -> str:
    """A token's text, escaped for HTML, with spaces, line breaks and emptiness made visible."""
    if piece == "":
        return "<i>◦</i>"
    text = html.escape(piece).replace(" ", "<i>·</i>").replace("\t", "<i>⇥</i>")
    return text.replace("\r", "<i>␍</i>").replace("\n", "<i>↵</i><br>")


def _shade(colour: str, strength: float) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{min(max(strength, 0.0), 1.0) * 0.75:.2f})"


def _colour(value: float, by: Colouring) -> str:
    scale = _SCALES[by]
    if np.isnan(value):
        return "transparent"
    strength = 1 - value if by == "probability" else abs(value - scale.neutral) / scale.full
    return _shade(scale.high if value >= scale.neutral else scale.low, strength)


def token_strip(tokens: pd.DataFrame, by: Colouring = "probability") -> str:
    """A completion as HTML, coloured by one number a token, with all its numbers on hover.

    `tokens`: one row a token, `workbench.probes.tokens.token_frame(rollout)`. Every piece of text
    is escaped; what another than the policy wrote is underlined and begins with its writer's name.
    In a notebook: IPython.display.HTML(token_strip(token_frame(rollout))).
    """
    head = f"{html.escape(_SCALES[by].meaning)} {_legend(by)}"
    if tokens[by].isna().all():
        head = f"{html.escape(_NAMES[by])} was not measured at this step; hover shows what was"
    measured = [column for column in _NAMES if tokens[column].notna().any()]
    others = sorted(set(tokens["written_by"]) - {"policy"})
    lines = {who: _WRITERS[at % len(_WRITERS)] for at, who in enumerate(others)}
    spans, before = [], "policy"
    for row in tokens.to_dict("records"):
        numbers = "".join(
            f"\n{_NAMES[column]} {row[column]:.4g}"
            for column in measured
            if not np.isnan(row[column])
        )
        hover = f"token {row['position']}: {row['token']!r}, id {row['token_id']}{numbers}"
        if row["why"]:
            hover += f"\n{row['why']}"
        who = row["written_by"]
        if who != "policy":
            hover += f"\nwritten by: {who}"
        if who != before:
            spans.append(
                f'<em style="border-color:{lines.get(who, MUTED)}">{html.escape(who)}</em>'
            )
        before = who
        spans.append(_span(row["token"], hover, _colour(row[by], by), line=lines.get(who, "")))
    if others:
        named = ", ".join(
            f'<u style="text-decoration-color:{lines[w]}">{html.escape(w)}</u>' for w in others
        )
        head += f"; underlined, not the policy's own: {named}"
    return f'<div class="token-strip"><p>{head}</p><div class="tokens">{"".join(spans)}</div></div>'


def difference_strip(
    tokens: Sequence[str],
    difference: Sequence[float],
    kl: Sequence[float],
    parting: int | None = None,
) -> str:
    """A text as HTML, coloured by the coordinator's log-prob difference, its parting point marked.

    `tokens`, `difference` and `kl` have one entry a token (fields of a CoordinatorEffect); with
    empty `difference` the text stays plain, and empty `kl` is not shown. `parting`: index of the
    first token that differs.
    """
    spans = []
    for at, piece in enumerate(tokens):
        hover, colour = f"token {at}: {piece!r}", "transparent"
        if difference:
            hover += f"\nlog-prob difference {difference[at]:+.4f} nats"
            hover += f"\nKL {kl[at]:.4f} nats" if kl else ""
            colour = _colour(difference[at], "coordinator_difference")
        if at == parting:
            hover += "\nhere the texts part"
        spans.append(_span(piece, hover, colour, parted=at == parting))
    if parting is not None and parting >= len(tokens):
        spans.append(_span("", "here the texts part: this one ends", "transparent", parted=True))
    return f'<div class="token-strip"><div class="tokens">{"".join(spans)}</div></div>'


def _span(piece: str, hover: str, colour: str, parted: bool = False, line: str = "") -> str:
    mark = ' class="parting"' if parted else ""
    under = f";border-bottom:2px solid {line}" if line else ""
    return (
        f'<span{mark} style="background:{colour}{under}" title="{html.escape(hover)}">'
        f"{visible(piece)}</span>"
    )


def _legend(by: Colouring) -> str:
    scale = _SCALES[by]
    if by == "probability":
        stops = [0.0, 0.5, 1.0]
    elif scale.low == scale.high:
        stops = [0.0, scale.full / 2, scale.full]
    else:
        stops = [scale.neutral - scale.full, scale.neutral, scale.neutral + scale.full]
    return "".join(
        f'<b style="background:{_colour(stop, by)}">&nbsp;{stop:.3g}&nbsp;</b>' for stop in stops
    )
