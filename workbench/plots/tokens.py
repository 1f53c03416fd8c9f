"""Token strips: a completion as HTML, each token coloured by one of its numbers, all on hover."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from workbench.plots._theme import AGAINST, COORDINATOR, JOINT, MUTED

Colouring = Literal[
    "probability",
    "entropy",
    "advantage",
    "ratio",
    "RL-only ratio",
    "KL to the start",
    "coordinator difference",
]

COLOURINGS: tuple[Colouring, ...] = get_args(Colouring)
"""What a rollout's tokens can be coloured by."""


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
    "advantage": _Scale(
        "advantage of the whole rollout, the same at each token", AGAINST, JOINT, 2
    ),
    "ratio": _Scale("π now / π when sampled; 1 is no change", AGAINST, JOINT, 0.2, 1),
    "RL-only ratio": _Scale("π RL-only / π when sampled", AGAINST, JOINT, 0.5, 1),
    "KL to the start": _Scale("KL estimate to the starting policy (k3), nats", MUTED, AGAINST, 0.5),
    "coordinator difference": _Scale(
        "log π with the coordinator − log π without, nats", AGAINST, JOINT, 1
    ),
}


def token_values(rollout: Mapping[str, Any], by: Colouring) -> np.ndarray:
    """One number a token of a row of frame "rollouts"; empty where it was not measured.

    probability exp(log π); ratio exp(log π − log π at sampling); KL to the start is the k3 estimate
    r − 1 − log r with r = π_start/π (Schulman 2020).
    """
    logprob, sampled, entropy, baseline, reference, off = (
        np.asarray(rollout[name], dtype=float)
        for name in (
            "logprob",
            "sampling_logprob",
            "entropy",
            "baseline_logprob",
            "reference_logprob",
            "coordinator_off_logprob",
        )
    )
    if by == "probability":
        return np.exp(logprob if len(logprob) else sampled)
    if by == "entropy":
        return entropy
    if by == "advantage":
        return np.full(len(sampled), rollout["advantage"], dtype=float)
    first, second = {
        "ratio": (logprob, sampled),
        "RL-only ratio": (baseline, sampled),
        "KL to the start": (reference, logprob),
        "coordinator difference": (logprob, off),
    }[by]
    if not (len(first) and len(second)):
        return np.empty(0)
    difference = first - second
    if by == "KL to the start":
        return np.expm1(difference) - difference
    return difference if by == "coordinator difference" else np.exp(difference)


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


def token_strip(rollout: Mapping[str, Any], by: Colouring = "probability") -> str:
    """A rollout's completion as HTML, coloured by one number a token, with all numbers on hover.

    `rollout`: a row of frame "rollouts". In a notebook: IPython.display.HTML(token_strip(row)).
    Every piece of text is escaped.
    """
    columns = {name: token_values(rollout, name) for name in COLOURINGS}
    values = columns[by]
    if not len(values):
        head = f"<p>{html.escape(by)} was not measured at this step; hover shows what was.</p>"
        values = np.full(len(rollout["tokens"]), np.nan)
    else:
        head = f"<p>{html.escape(_SCALES[by].meaning)} {_legend(by)}</p>"
    known = {name: column for name, column in columns.items() if len(column)}
    spans = []
    for at, piece in enumerate(rollout["tokens"]):
        numbers = "\n".join(f"{name} {column[at]:.4g}" for name, column in known.items())
        hover = f"token {at}: {piece!r}, id {rollout['token_ids'][at]}\n{numbers}"
        spans.append(_span(piece, hover, _colour(values[at], by)))
    return f'<div class="token-strip">{head}<div class="tokens">{"".join(spans)}</div></div>'


def difference_strip(
    tokens: Sequence[str],
    difference: Sequence[float],
    kl: Sequence[float],
    parting: int | None = None,
) -> str:
    """A text as HTML, coloured by the coordinator's log-prob difference, its parting point marked.

    `tokens`, `difference` and `kl` have one entry a token (fields of a CoordinatorEffect); with
    empty `difference` the text stays plain. `parting`: index of the first token that differs.
    """
    spans = []
    for at, piece in enumerate(tokens):
        hover, colour = f"token {at}: {piece!r}", "transparent"
        if difference:
            hover += f"\nlog-prob difference {difference[at]:+.4f} nats\nKL {kl[at]:.4f} nats"
            colour = _colour(difference[at], "coordinator difference")
        if at == parting:
            hover += "\nhere the texts part"
        spans.append(_span(piece, hover, colour, parted=at == parting))
    if parting is not None and parting >= len(tokens):
        spans.append(_span("", "here the texts part: this one ends", "transparent", parted=True))
    return f'<div class="token-strip"><div class="tokens">{"".join(spans)}</div></div>'


def _span(piece: str, hover: str, colour: str, parted: bool = False) -> str:
    mark = ' class="parting"' if parted else ""
    return (
        f'<span{mark} style="background:{colour}" title="{html.escape(hover)}">'
        f"{visible(piece)}</span>"
    )


def _legend(by: Colouring) -> str:
    scale = _SCALES[by]
    if by == "probability":
        stops = [0.0, 0.5, 1.0]
    elif scale.low == scale.high or by == "KL to the start":
        stops = [0.0, scale.full / 2, scale.full]
    else:
        stops = [scale.neutral - scale.full, scale.neutral, scale.neutral + scale.full]
    return "".join(
        f'<b style="background:{_colour(stop, by)}">&nbsp;{stop:.3g}&nbsp;</b>' for stop in stops
    )
