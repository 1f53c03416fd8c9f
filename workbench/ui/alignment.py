"""Tab Gradient alignment: do demonstrations and RL pull the same way?"""

from __future__ import annotations

from typing import Any

import gradio as gr
import pandas as pd

from workbench import plots
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
    prompt_block,
    quiet,
    table_json,
    told,
)

TITLE = "Gradient alignment"
HELP = (
    "The cosine between the gradient of the demonstrations and that of RL. In so many "
    "dimensions a cosine near zero is what noise alone gives, so the grey band shows how large "
    "noise makes it: a hollow point inside the band says nothing, a filled one outside it is "
    "real. Below the band, learning from the demonstrations undoes what RL does. Each "
    "demonstration has its own number: how much learning from it alone pushes where RL wants to "
    "go. One that hurts can be set aside; it can be taken back."
)
_PARTS: dict[str, plots.Part] = {
    "θ (model)": "base",
    "w (coordinator)": "coordinator",
    "gain: joint and RL-only, over w": "gain",
}
_COLUMNS = [
    Column("demonstration"),
    Column("prompt"),
    Column("solution"),
    Column("inner product", 4, "⟨g, g RL⟩ over θ: above zero pushes with RL"),
    Column("cosine", 3),
    Column("over w", 4, "inner product over the coordinator"),
    Column("loss", 3, "nats a token"),
    Column("‖g‖", 3),
    Column("tokens", 0),
    Column("step", 0, "newest visit"),
]


def build(session: Session) -> View:
    """Lay the tab out and wire it."""
    help_text(HELP)
    with gr.Row():
        part = gr.Radio(
            list(_PARTS), value="θ (model)", label="Gradient of", elem_id="part", scale=2
        )
        reveal = gr.Checkbox(
            False,
            label="Reveal the hidden quality tags",
            info="Training never sees them; guess first, then look.",
            elem_id="reveal",
            scale=1,
        )
    with gr.Row():
        over_time = live_plot(290, "plot-cosine")
        by_layer = live_plot(290, "plot-cosine-layers")
    with gr.Row():
        ratio = live_plot(230, "plot-norm-ratio")
        conflict = live_plot(230, "plot-conflict")
        signal = live_plot(230, "plot-gain-signal")
    with gr.Row():
        scatter = live_plot(360, "plot-demonstrations")
        spread = live_plot(360, "plot-demonstrations-time")
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=560):
            table = live_table(380, "demonstration-table")
        with gr.Column(scale=1, min_width=300):
            detail = page(quiet("Click a demonstration to read it."), "demonstration-detail")
            picked = gr.State("")
            with gr.Row(visible=False) as decide:
                aside = gr.Button("Set it aside", size="md", elem_id="set-aside")
                back = gr.Button("Take it back", size="md", elem_id="take-back")

    def draw(values: Values) -> Updates:
        alignment, demonstrations = session.frame("alignment"), session.frame("demonstrations")
        chosen = _PARTS[values[part]]
        dots = plots.demonstrations_scatter(demonstrations, reveal_quality=values[reveal])
        return {
            over_time: figure_json(plots.alignment_over_time(alignment, chosen)),
            by_layer: figure_json(plots.alignment_heatmap(alignment, chosen)),
            ratio: figure_json(plots.norm_ratio(alignment)),
            conflict: figure_json(plots.conflict_share(alignment)),
            signal: figure_json(plots.gain_signal(alignment)),
            scatter: figure_json(dots),
            spread: figure_json(plots.demonstrations_over_time(demonstrations)),
            table: demonstration_table(demonstrations, values[reveal]),
        }

    outputs = {over_time, by_layer, ratio, conflict, signal, scatter, spread, table}
    view = View({part, reveal}, outputs, draw)
    quietly: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    for control in (part, reveal):
        control.input(draw, view.inputs, view.outputs, **quietly)

    def pick(show_quality: bool, event: gr.EventData) -> tuple[Any, ...]:
        text = demonstration_detail(session, event.value, show_quality)
        return text, event.value, gr.Row(visible=True)

    for source in (scatter, table):
        source.pick(told(pick), reveal, [detail, picked, decide], **quietly)

    def set_aside(name: str, show_quality: bool) -> str:
        session.set_aside(name)
        return demonstration_detail(session, name, show_quality)

    def take_back(name: str, show_quality: bool) -> str:
        session.take_back(name)
        return demonstration_detail(session, name, show_quality)

    aside.click(told(set_aside), [picked, reveal], detail, **quietly)
    back.click(told(take_back), [picked, reveal], detail, **quietly)
    return view


def _newest(demonstrations: pd.DataFrame) -> pd.DataFrame:
    return demonstrations.sort_values("step", kind="stable").drop_duplicates(
        "demonstration_id", keep="last"
    )


def demonstration_table(demonstrations: pd.DataFrame, show_quality: bool) -> str:
    """The newest visit of each demonstration, those that push against RL first."""
    newest = _newest(demonstrations).sort_values("rl_alignment", kind="stable")
    rows = [
        (
            row.demonstration_id,
            row.prompt.strip(),
            row.solution,
            row.rl_alignment,
            row.rl_cosine,
            row.rl_alignment_coordinator,
            row.loss,
            row.grad_norm,
            row.n_tokens,
            row.step,
            *([row.quality] if show_quality else []),
        )
        for row in newest.itertuples()
    ]
    columns = [*_COLUMNS, Column("quality")] if show_quality else _COLUMNS
    empty = "No demonstration has been measured yet: it comes with each step (alignment_every)."
    return table_json(columns, rows, list(newest["demonstration_id"]), empty)


def demonstration_detail(session: Session, demonstration_id: str, show_quality: bool) -> str:
    """One demonstration, with its numbers at its newest visit, as HTML."""
    found = _newest(session.frame("demonstrations"))
    row = found[found["demonstration_id"] == demonstration_id].iloc[0]
    note = (
        f"step {row['step']}: inner product with RL {row['rl_alignment']:+.3g}, "
        f"cosine {row['rl_cosine']:+.3f}, loss {row['loss']:.3f} nats a token"
    )
    if show_quality:
        note += f", hidden quality: {row['quality']}"
    if demonstration_id in session.config.get("set_aside"):
        note += "; set aside: no step draws it"
    body = prompt_block(row["prompt"]) + prompt_block(row["solution"])
    return card(demonstration_id, note, None, body)
