"""Tab Replay: execute a step again in a scratch copy, look inside, and ask what if."""

from __future__ import annotations

import html
import shlex
import sys
from typing import Any

import gradio as gr
import pandas as pd

from workbench import plots
from workbench.config import ConfigError
from workbench.replay import Difference, Replay
from workbench.session import Session
from workbench.ui.parts import (
    Column,
    Updates,
    Values,
    View,
    card,
    figure_json,
    help_text,
    live_plot,
    live_table,
    page,
    pair,
    prompt_block,
    quiet,
    table_json,
    told,
    whole,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TITLE = "Replay"
HELP = (
    "A step is executed again from the nearest snapshot, in a copy of the model: the run stays as "
    "it is. Without changes it gives the recorded numbers to the last bit, and shows what happened "
    "inside. With changes it says what the step would have been; a second replay beside it, "
    "dashed in the figures, is held against the first. Pause breaks it off."
)
SHOWN = 3
"""Rollouts shown token by token."""
_DIFFERENCES = [
    Column("number"),
    Column("recorded"),
    Column("replayed"),
    Column("difference"),
    Column("relative", 4, "to the larger of the two"),
    Column("values", 0, "how many of them differ"),
]
_SIDE_BY_SIDE = [
    Column("number"),
    Column("of", help="a metric of the step, a layer in one of its passes, or a layer's update"),
    Column("first"),
    Column("second"),
    Column("first − second"),
    Column("relative", 4, "to the larger of the two"),
]
_PARTS = {"base": "θ", "baseline": "θ̂", "coordinator": "w"}
MOST = 300
"""Differences listed."""


def build(session: Session) -> View:
    """Lay the tab out and wire it."""
    help_text(HELP)
    with gr.Row(equal_height=False):
        step = gr.Number(1, label="Step", precision=0, minimum=1, elem_id="replay-step")
        changes = gr.Textbox(
            label="Changes",
            placeholder="e.g. rl_weight=0.9 base_lr=1e-5; empty: the step as it was",
            elem_id="replay-changes",
            scale=3,
        )
        other = gr.Textbox(
            label="Changes of a second replay",
            placeholder="empty: none, the first is held against the run's record",
            elem_id="replay-second",
            scale=3,
        )
        start = gr.Button("Replay", variant="primary", size="md", elem_id="replay", min_width=120)
    offered = gr.State(1)
    said = page(quiet("Choose a step and press Replay."), "replay-said")
    with gr.Row():
        gradients = live_plot(
            300,
            "plot-layer-gradients",
            "Where along the network the gradient of each objective grows or fades.",
            "The gradient at each layer.",
        )
        activations = live_plot(
            300,
            "plot-layer-activations",
            "Root mean square of what each layer puts out: a jump is where numbers get too large.",
            "The size of each layer's output.",
        )
        updates = live_plot(
            300,
            "plot-updates",
            "How far the step moved the weights of each layer, against their size.",
            "How far each layer was moved.",
        )
    differences = live_table(300, "replay-differences", "What differs, the largest first.")
    texts = page("", "replay-texts")

    def draw(values: Values) -> Updates:
        if values[step] != values[offered]:  # a person has entered another
            return {}
        newest = max(session.step_number, 1)
        return {step: newest, offered: newest}

    def run(number: float | None, entered: str, beside: str) -> tuple[Any, ...]:
        asked = whole(number, "Step")
        first = session.replay(asked, trace=True, **changes_of(entered))
        second = session.replay(asked, trace=True, **changes_of(beside)) if beside.strip() else None
        layers, moved = (second.layers, second.updates) if second else (None, None)
        return (
            pair([said_html(first), said_html(second)]) if second else said_html(first),
            figure_json(plots.layer_norms(first.layers, beside=layers)),
            figure_json(plots.layer_norms(first.layers, "activation_rms", beside=layers)),
            figure_json(plots.update_sizes(first.updates, beside=moved)),
            side_by_side(first.minus(second)) if second else difference_table(first.differences),
            parted_html(first.minus(second)) if second else texts_html(first),
        )

    shown = [said, gradients, activations, updates, differences, texts]
    wire: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private"}
    asked = [step, changes, other]
    for press in (start.click, changes.submit, other.submit):
        press(told(run), asked, shown, **wire)
    return View({step, offered}, {step, offered}, draw)


def changes_of(text: str) -> dict[str, Any]:
    """'rl_weight=0.9 terms=[3,4]' as settings: TOML values, or bare text where it is none.

    Raises ConfigError where a part is not name=value.
    """
    try:
        parts = shlex.split(text.replace(",\n", " "))
    except ValueError as error:
        raise ConfigError(f"changes: {error}") from None
    found: dict[str, Any] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not (name and equals):
            raise ConfigError(f"changes: {part!r} is not name=value, e.g. rl_weight=0.9")
        try:
            found[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[name] = value
    return found


def said_html(found: Replay) -> str:
    """The result in words."""
    first, *rest = (html.escape(line) for line in found.summary())
    look = {True: "good", False: "bad", None: ""}[found.identical]
    badge = {True: "identical", False: "different", None: "not recorded"}[found.identical]
    lines = "<br>".join(rest)
    return (
        f'<div class="wb-card"><h4>{first} <span class="wb-reward {look}" '
        f'data-testid="identical">{badge}</span></h4>{lines}</div>'
    )


def difference_table(differences: pd.DataFrame) -> str:
    """Replayed against recorded, as a live table takes it."""
    rows = [
        (
            row["name"],
            f"{row['recorded']:.6g}",
            f"{row['replayed']:.6g}",
            f"{row['difference']:+.4g}",
            row["relative"],
            row["count"],
        )
        for row in differences.to_dict("records")
    ]
    ids = list(differences["name"])
    return table_json(_DIFFERENCES, rows, ids, "No number differs from the recorded step.")


def side_by_side(found: Difference) -> str:
    """Two replays as a live table takes them, the largest relative difference first."""
    metrics = found.metrics.assign(of="metric")
    layers = found.layers.assign(
        name=found.layers["measure"].str.replace("_", " "),
        of=found.layers["passing"] + " " + found.layers["module"],
    )
    moved = found.updates[found.updates["layer"] != "all"]  # those are metrics
    moved = moved.assign(
        name=moved["measure"].str.replace("_", " "),
        of="update of " + moved["part"].map(_PARTS) + " " + moved["layer"],
    )
    together = pd.concat([metrics, layers, moved], ignore_index=True)
    together = together[together["difference"] != 0]
    together = together.sort_values("relative", ascending=False, kind="stable").head(MOST)
    rows = [
        (
            row["name"],
            row["of"],
            f"{row['first']:.6g}",
            f"{row['second']:.6g}",
            f"{row['difference']:+.4g}",
            row["relative"],
        )
        for row in together.to_dict("records")
    ]
    ids = [f"{of}/{name}" for name, of, *_ in rows]
    return table_json(_SIDE_BY_SIDE, rows, ids, "The two replays do not differ in any number.")


def parted_html(found: Difference) -> str:
    """The texts that the two updates left most apart, coloured by how far."""
    if found.tokens.empty:
        return ""
    apart = found.tokens.groupby("sequence")["difference"].apply(lambda c: c.abs().sum())
    prompts, cards = prompts_of(found.first), []
    for sequence in apart.sort_values(ascending=False, kind="stable").index[:SHOWN]:
        tokens = found.tokens[found.tokens["sequence"] == sequence].sort_values("position")
        kept = tokens[~tokens["parted"]]
        strip = plots.difference_strip(
            list(tokens["token"]),
            list(tokens["difference"].fillna(0.0)),
            [],
            None if len(kept) == len(tokens) else len(kept),
        )
        apart_by = kept["difference"].sum()
        note = f"log-probability after the first update − after the second {apart_by:+.3f} nats"
        body = prompt_block(prompts.get(int(sequence), "")) + strip
        cards.append(card(f"Text {sequence}", note, None, body))
    said = "The texts that the two updates left most apart, blue likelier after the first:"
    return quiet(said) + pair(cards)


def texts_html(found: Replay) -> str:
    """The texts whose tokens the update moved most, coloured by how far."""
    if found.tokens.empty:
        return ""
    moved = found.tokens.groupby("sequence")["logprob_change"].apply(lambda c: c.abs().sum())
    prompts, cards = prompts_of(found), []
    for sequence in moved.sort_values(ascending=False, kind="stable").index[:SHOWN]:
        tokens = found.tokens[found.tokens["sequence"] == sequence]
        strip = plots.difference_strip(
            list(tokens["token"]), list(tokens["logprob_change"]), list(tokens["kl_update"])
        )
        change = tokens["logprob_change"].sum()
        note = f"log-probability of the text {change:+.3f} nats by the update"
        body = prompt_block(prompts.get(int(sequence), "")) + strip
        cards.append(card(f"Text {sequence}", note, None, body))
    return quiet("The texts that the update moved most, blue up, vermilion down:") + pair(cards)


def prompts_of(found: Replay) -> dict[int, str]:
    """The prompt of each training rollout, by sequence."""
    rows = found.record.rollouts if found.record else []
    return {row.sequence: row.prompt for row in rows if row.purpose == "train"}
