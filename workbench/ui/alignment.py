"""Tab Gradient alignment: do demonstrations and RL pull the same way?"""

from __future__ import annotations

from typing import Any

import gradio as gr

from workbench import plots
from workbench.session import Session
from workbench.ui.ledger import LedgerView
from workbench.ui.parts import Updates, Values, View, figure_json, help_text, live_plot

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
    ledger = LedgerView(session, reveal, scatter)

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
        } | ledger.draw(values[ledger.picked], values[reveal])

    outputs = {over_time, by_layer, ratio, conflict, signal, scatter, spread}
    outputs |= {ledger.table, ledger.detail, ledger.visits}
    view = View({part, reveal, ledger.picked}, outputs, draw)
    quietly: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    for control in (part, reveal):
        control.input(draw, view.inputs, view.outputs, **quietly)
    return view
