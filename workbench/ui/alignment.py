"""Tab Gradient alignment: do demonstrations and RL pull the same way?"""

from __future__ import annotations

from typing import Any

import gradio as gr

from workbench import plots
from workbench.session import Session
from workbench.ui.absent import absent
from workbench.ui.ledger import LedgerView
from workbench.ui.parts import (
    Updates,
    Values,
    View,
    figure_json,
    help_text,
    lacking,
    live_plot,
    page,
    thinned_note,
)

TITLE = "Gradient alignment"
HELP = (
    "The cosine between the gradient of the demonstrations and that of RL. In so many "
    "dimensions a cosine near zero is what noise alone gives, so the grey band shows how large "
    "noise makes it, from how demonstrations and prompts differ: a hollow point inside the band "
    "says nothing, a filled one outside it is real (95 %). Below the band, learning from the "
    "demonstrations undoes what RL does. Each demonstration has its own number: how much "
    "learning from it alone pushes where RL wants to go."
)
_PARTS: dict[str, plots.Part] = {
    "θ (model)": "base",
    "w (coordinator)": "coordinator",
    "gain: joint and RL-only, over w": "gain",
}

_HINTS = {
    "plot-cosine": (
        "Above the grey band demonstrations and RL pull the same way, below it they pull "
        "against each other; inside it the value is what noise gives."
    ),
    "plot-cosine-layers": (
        "The same layer by layer, the input at the bottom. A small ring: inside that "
        "layer's noise band."
    ),
    "plot-norm-ratio": (
        "Far above 1 the demonstrations drown RL, far below RL drowns the demonstrations."
    ),
    "plot-conflict": "Layers whose cosine is below zero and outside their noise band.",
    "plot-gain-signal": (
        "w follows the difference of the two RL gradients, at θ+w and at θ̂+w. Where it "
        "vanishes only demonstrations move w."
    ),
    "plot-demonstrations": (
        "A point a demonstration at its newest visit. Above zero: learning from it alone "
        "would raise the reward. Click one to read it."
    ),
    "plot-demonstrations-time": "Half of the step's demonstrations lie in the green band.",
}
"""How to read each figure."""


def build(session: Session) -> View:
    """Lay the tab out and wire it."""
    help_text(HELP)
    lacks = absent(session.config)
    why = lacks.alignment
    lacking(why)
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
    note = page()
    with gr.Row():
        over_time = live_plot(290, "plot-cosine", _HINTS["plot-cosine"])
        by_layer = live_plot(290, "plot-cosine-layers", _HINTS["plot-cosine-layers"])
    with gr.Row():
        ratio = live_plot(230, "plot-norm-ratio", _HINTS["plot-norm-ratio"])
        conflict = live_plot(230, "plot-conflict", _HINTS["plot-conflict"])
        signal = live_plot(230, "plot-gain-signal", _HINTS["plot-gain-signal"])
    with gr.Row():
        scatter = live_plot(360, "plot-demonstrations", _HINTS["plot-demonstrations"])
        spread = live_plot(360, "plot-demonstrations-time", _HINTS["plot-demonstrations-time"])
    ledger = LedgerView(session, reveal, scatter)

    def draw(values: Values) -> Updates:
        alignment = session.overview("alignment")
        demonstrations = session.overview("demonstrations")
        chosen = _PARTS[values[part]]
        dots = plots.demonstrations_scatter(demonstrations, reveal_quality=values[reveal])
        return {
            note: thinned_note(alignment),
            over_time: figure_json(plots.alignment_over_time(alignment, chosen), why),
            by_layer: figure_json(plots.alignment_heatmap(alignment, chosen), why),
            ratio: figure_json(plots.norm_ratio(alignment), why),
            conflict: figure_json(plots.conflict_share(alignment), why),
            signal: figure_json(plots.gain_signal(alignment), lacks.coordinator),
            scatter: figure_json(dots, why),
            spread: figure_json(plots.demonstrations_over_time(demonstrations), why),
        } | ledger.draw(values[ledger.picked], values[reveal], demonstrations)

    outputs = {note, over_time, by_layer, ratio, conflict, signal, scatter, spread}
    outputs |= {ledger.table, ledger.detail, ledger.visits}
    view = View({part, reveal, ledger.picked}, outputs, draw)
    quietly: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    for control in (part, reveal):
        control.input(draw, view.inputs, view.outputs, **quietly)
    return view
