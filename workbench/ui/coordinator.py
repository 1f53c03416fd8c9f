"""Tab Coordinator: the same prompt and noise with the coordinator off, on and at any scale."""

from __future__ import annotations

from typing import Any

import gradio as gr

from workbench import plots
from workbench.probes.coordinator import Against
from workbench.records import CoordinatorEffect, Sample
from workbench.session import Session
from workbench.ui.absent import absent
from workbench.ui.parts import (
    Updates,
    Values,
    View,
    card,
    figure_json,
    help_text,
    lacking,
    live_plot,
    page,
    pair,
    prompt_block,
    quiet,
    thinned_note,
    told,
    whole,
)

TITLE = "Coordinator"
HELP = (
    "One prompt, the same noise, the coordinator w switched <b>off</b> (scale 0), <b>on</b> (1) "
    "or set to any scale; or all of it against the policy the run started from. Up to the token "
    "where two texts part they are equal, so what differs there is the coordinator's doing (or the "
    "training's) and not chance. Blue tokens became likelier through it, vermilion ones less "
    "likely; hover for the numbers. Nothing here changes the run."
)
_LISTED = 40  # prompts of each split offered for picking

_HINTS = {
    "plot-difference": (
        "Bars up: tokens that became likelier through w. The line: how far the whole "
        "distribution moved at that position."
    ),
    "plot-coordinator-norms": (
        "The size of the coordinator's change of each layer against the layer's own "
        "weights. Flat: it has stopped growing."
    ),
    "plot-singular-values": (
        "One bright column at the left: w writes along one direction of that matrix."
    ),
    "plot-effective-ranks": (
        "How many directions w uses, at most its rank. Near 1 it writes along one direction "
        "of each matrix."
    ),
    "plot-singular-history": "Which directions of this matrix grow.",
    "plot-dose": (
        "Same problems, same noise, w scaled. A band clear of zero is an effect; 1 is the "
        "scale the run trains with."
    ),
    "plot-ablation": (
        "Above: how far the distributions move when one layer's w is switched off. Below: "
        "the reward it earns, with its 95 % interval."
    ),
}
"""How to read each figure."""


def build(session: Session) -> View:
    """Lay the tab out and wire it."""
    help_text(HELP)
    why = absent(session.config).coordinator
    lacking(why and f"{why} It stays as it began, so off and on are the same.")
    problems = {
        f"{problem.id}: {problem.prompt.strip()}": problem
        for split in ("validation", "hard", "train")
        for problem in session.problems(split)[:_LISTED]
    }
    first = next(iter(problems.values()), None)  # None: of a run that is only read
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=340):
            picked = gr.Dropdown(
                list(problems),
                value=next(iter(problems), None),
                label="A prompt of the task",
                filterable=True,
                elem_id="pick-prompt",
            )
            prompt = gr.Textbox(
                first.prompt if first else "",
                label="Prompt",
                lines=2,
                max_lines=10,
                elem_id="prompt",
            )
            answer = gr.Textbox(
                first.answer if first else "",
                label="Right answer",
                info="Empty: the reward is only known for prompts of the task.",
                elem_id="answer",
            )
            scale = gr.Slider(0, 2, 1, step=0.05, label="Scale of the coordinator", elem_id="scale")
            against = gr.Radio(
                [("the coordinator off", 0.0), ("the start of the run", "start")],
                value=0.0,
                label="Compared with",
                elem_id="against",
            )
            with gr.Row():
                count = gr.Slider(1, 8, 2, step=1, label="Rollouts", min_width=140)
                seed = gr.Number(0, label="Noise seed", precision=0, minimum=0, min_width=110)
            greedy = gr.Checkbox(False, label="Greedy: no noise at all", elem_id="greedy")
            compare = gr.Button("Compare", variant="primary", size="md", elem_id="compare")
        with gr.Column(scale=3, min_width=320):
            texts = page(quiet("Press Compare: the texts appear here side by side."), "effect")
            bars = live_plot(250, "plot-difference", _HINTS["plot-difference"])
    note = page()
    with gr.Row():
        norms = live_plot(320, "plot-coordinator-norms", _HINTS["plot-coordinator-norms"])
        spectrum = live_plot(320, "plot-singular-values", _HINTS["plot-singular-values"])
    with gr.Row(equal_height=True):
        ranks = live_plot(300, "plot-effective-ranks", _HINTS["plot-effective-ranks"])
        with gr.Column(scale=1, min_width=400):
            module = gr.Dropdown(
                [], label="Singular values over time, of this matrix", elem_id="module"
            )
            history = live_plot(230, "plot-singular-history", _HINTS["plot-singular-history"])

    with gr.Row():
        ask_dose = gr.Button("Measure the reward at every scale", size="md", elem_id="ask-dose")
        ask_ablation = gr.Button(
            "Switch off one layer at a time", size="md", elem_id="ask-ablation"
        )
    with gr.Row():
        dose = live_plot(320, "plot-dose", _HINTS["plot-dose"])
        ablation = live_plot(320, "plot-ablation", _HINTS["plot-ablation"])

    hinted = gr.State(False)

    def draw(values: Values) -> Updates:
        coordinator = session.overview("coordinator")
        updates: Updates = {
            note: thinned_note(coordinator),
            norms: figure_json(plots.coordinator_norms(coordinator), why),
            spectrum: figure_json(plots.singular_values(coordinator), why),
            ranks: figure_json(plots.effective_ranks(coordinator), why),
        }
        modules = list(dict.fromkeys(coordinator["module"]))
        chosen = values[module] or (modules[0] if modules else None)
        if modules and not values[module]:
            updates[module] = gr.update(choices=modules, value=chosen)
        updates[history] = figure_json(
            plots.singular_values_over_time(coordinator, chosen or "a matrix"), why
        )
        if not values[hinted]:  # what is done on demand says so once, then keeps what it shows
            updates[hinted] = True
            updates[bars] = figure_json(plots.logprob_difference([], [], []))
            updates[dose] = figure_json(
                plots.dose_response([]),
                why or "Press “Measure the reward at every scale”: takes a while.",
            )
            updates[ablation] = figure_json(
                plots.coordinator_ablation([]),
                why or "Press “Switch off one layer at a time”: takes a while.",
            )
        return updates

    def take(name: str) -> tuple[str, str]:
        return problems[name].prompt, problems[name].answer

    def show(
        text: str,
        right: str,
        at: float,
        other: Against,
        rollouts: float,
        no_noise: bool,
        noise: float,
    ) -> tuple[str, str]:
        if not text:
            raise ValueError("The prompt is empty: type one, or pick one from the task.")
        scales = [1.0] if at in (other, 1.0) else [1.0, float(at)]
        effects = session.coordinator_effect(
            text,
            scales=scales,
            against=other,
            answer=right.strip() or None,
            rollouts=int(rollouts),
            greedy=no_noise,
            seed=whole(noise, "Noise seed"),
        )
        last = effects[-1]
        figure = plots.logprob_difference(last.other.tokens, last.logprob_difference, last.kl)
        return effects_html(text, effects), figure_json(figure)

    wire: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    picked.input(told(take), picked, [prompt, answer], **wire)
    wire["show_progress"] = "minimal"
    asked = [prompt, answer, scale, against, count, greedy, seed]
    compare.click(told(show), asked, [texts, bars], **wire)

    def measure_dose() -> str:
        return figure_json(plots.dose_response(session.dose_response()))

    def measure_ablation() -> str:
        return figure_json(plots.coordinator_ablation(session.coordinator_ablation()))

    ask_dose.click(told(measure_dose), None, dose, **wire)
    ask_ablation.click(told(measure_ablation), None, ablation, **wire)
    view = View(
        {hinted, module},
        {note, norms, spectrum, ranks, module, history, hinted, bars, dose, ablation},
        draw,
    )
    module.input(draw, view.inputs, view.outputs, show_progress="hidden", api_visibility="private")
    return view


def effects_html(prompt: str, effects: list[CoordinatorEffect]) -> str:
    """Each rollout of what is compared with, beside the same at other scales, as HTML."""
    off = effects[0].base.policy == "joint"
    base_name, base_note = ("off", "scale 0") if off else ("start", "the policy at the start")
    blocks = []
    for sequence in sorted({effect.other.sequence for effect in effects}):
        same_noise = [effect for effect in effects if effect.other.sequence == sequence]
        base = same_noise[0].base
        cards = [_card(base_name, base_note, base, plots.difference_strip(base.tokens, [], []))]
        for effect in same_noise:
            strip = plots.difference_strip(
                effect.other.tokens, effect.logprob_difference, effect.kl, effect.first_parting
            )
            where = (
                f"same text as {base_name}"
                if effect.first_parting is None
                else f"parts from {base_name} at token {effect.first_parting}"
            )
            note = f"{where}, KL {sum(effect.kl):.3g} nats in all"
            name = {0.0: "off", 1.0: "on"}.get(effect.other.coordinator, "scaled")
            title = f"{name}, scale {effect.other.coordinator:g}"
            cards.append(_card(title, note, effect.other, strip))
        blocks.append(pair(cards))
    return prompt_block(prompt) + "".join(blocks)


def _card(title: str, note: str, sample: Sample, strip: str) -> str:
    if not sample.finished:
        note += ", cut off by the length limit"
    return card(title, note, sample.reward, strip)
