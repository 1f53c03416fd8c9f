"""Tab Rollouts: every rollout of a step, and one of them token by token."""

from __future__ import annotations

from math import isnan
from typing import Any

import gradio as gr
import numpy as np
import pandas as pd

from workbench import plots
from workbench.probes.tokens import terms_known, token_frame
from workbench.records import RolloutRow
from workbench.session import Session
from workbench.ui.absent import absent
from workbench.ui.counterfactual import CounterfactualPanel
from workbench.ui.parts import (
    Column,
    Updates,
    Values,
    View,
    card,
    help_text,
    lacking,
    live_table,
    page,
    prompt_block,
    quiet,
    table_json,
    told,
)

TITLE = "Rollouts"
HELP = (
    "Every rollout of a step. Click a heading to sort and a row to read its tokens below, "
    "coloured by the number you choose; hover over a token for all of its numbers, and for the "
    "term it adds to each loss with the reason it is pushed up or down. <b>train</b> rollouts are "
    "what the step learned from, <b>paired</b> ones were drawn only to measure the gain."
)
_COLUMNS = [
    Column("prompt"),
    Column("completion"),
    Column("answer", help="the answer found in the completion; × where there is none"),
    Column("right", help="the right answer"),
    Column("reward", 0),
    Column("advantage", 2),
    Column("length", 0, "tokens, the end token included"),
    Column("log π", 2, "log-probability of its own tokens at sampling, nats"),
    Column("purpose"),
    Column("policy"),
    Column("group", help="prompts of the step, in the order they were drawn"),
]
_PULLS = [
    Column("⟨g, g RL⟩", 5, "does this rollout push where all rollouts together push (over θ)?"),
    Column("cos RL", 3, "cos(g, g RL)"),
    Column("⟨g, g SFT⟩", 5, "does it push where the demonstrations push (over θ)?"),
    Column("‖g‖", 4, "size of this rollout's share of the gradient"),
]
_PULL_FIELDS = ("rl_alignment", "rl_cosine", "sft_alignment", "grad_norm")


def build(session: Session) -> View:
    """Lay the tab out and wire it."""
    help_text(HELP)
    why = absent(session.config).rollouts
    lacking(why)
    with gr.Row(equal_height=True):
        step = gr.Slider(1, 2, 1, step=1, label="Step", elem_id="rollout-step", scale=3)
        follow = gr.Checkbox(True, label="Follow the newest step", elem_id="follow", scale=1)
        by = gr.Dropdown(
            list(plots.COLOURINGS.items()),
            value="probability",
            label="Colour tokens by",
            elem_id="by",
            scale=1,
        )
    table = live_table(400, "rollout-table")
    selected = gr.State("")
    detail = page(quiet("Click a rollout to see its tokens."), "rollout-detail")
    other = CounterfactualPanel(session, selected)

    def shown(number: int, row_id: str, colouring: plots.Colouring) -> Updates:
        rollouts = session.reader.rollouts(number)
        if not row_id and len(rollouts):
            row_id = _ids(rollouts)[0]
        return {
            table: rollout_table(rollouts, row_id, why),
            selected: row_id,
            detail: rollout_detail(session, row_id, colouring),
        }

    highest = 2  # of any browser's slider: a value above a slider's end would be refused

    def draw(values: Values) -> Updates:
        nonlocal highest
        last = session.reader.last_step()
        if last == 0:
            return {table: rollout_table(None, "", why)}
        highest = max(highest, last)
        number = last if values[follow] else min(int(values[step]), last)
        slider = gr.update(maximum=highest, value=number)
        offered = other.draw(values[other.weights])
        return {step: slider} | offered | shown(number, values[selected], values[by])

    inputs = {step, follow, by, selected, other.weights}
    view = View(inputs, {step, table, selected, detail, other.weights}, draw)
    quietly: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    def choose_step(values: Values) -> Updates:
        last = session.reader.last_step()
        if last == 0:
            return {follow: True}
        number = min(int(values[step]), last)
        return {follow: number == last} | shown(number, "", values[by])

    step.input(told(choose_step), view.inputs, view.outputs | {follow}, **quietly)
    follow.input(told(draw), view.inputs, view.outputs, **quietly)

    def pick(colouring: plots.Colouring, event: gr.EventData) -> tuple[str, str]:
        return event.value, rollout_detail(session, event.value, colouring)

    def recolour(row_id: str, colouring: plots.Colouring) -> str:
        return rollout_detail(session, row_id, colouring)

    table.pick(told(pick), by, [selected, detail], **quietly)
    by.input(told(recolour), [selected, by], detail, **quietly)
    return view


def _ids(rollouts: pd.DataFrame) -> list[str]:
    return [
        f"{row.step}/{row.purpose}/{row.policy}/{row.sequence}" for row in rollouts.itertuples()
    ]


def rollout_table(rollouts: pd.DataFrame | None, selected: str, because: str = "") -> str:
    """The rollouts of a step as a live table takes them. `rollouts`: `Run.rollouts(step)`.

    `because`: why there are none for good, if there are none.
    """
    empty = because or "No rollouts yet: press Run, or take a step."
    if rollouts is None or rollouts.empty:
        return table_json(_COLUMNS, [], [], empty)
    groups = {prompt_id: at for at, prompt_id in enumerate(rollouts["prompt_id"].unique(), start=1)}
    measured = bool(rollouts["grad_norm"].notna().any())  # on a schedule: rollout_alignment_every
    rows = [
        (
            row.prompt.strip(),
            row.completion,
            row.extracted or "×",
            row.answer,
            row.reward,
            row.advantage,
            len(row.token_ids),
            float(np.nansum(row.sampling_logprob)),  # NaN: not its own token
            row.purpose,
            row.policy,
            f"{groups[row.prompt_id]:02d} {row.prompt_id}",
            *((getattr(row, field) for field in _PULL_FIELDS) if measured else ()),
        )
        for row in rollouts.itertuples()
    ]
    columns = [*_COLUMNS, *_PULLS] if measured else _COLUMNS
    return table_json(columns, rows, _ids(rollouts), empty, selected)


def rollout_detail(session: Session, row_id: str, colouring: plots.Colouring) -> str:
    """One rollout's prompt and tokens as HTML. `row_id`: step/purpose/policy/sequence."""
    if not row_id:
        return quiet("Click a rollout to see its tokens.")
    step, purpose, policy, sequence = row_id.split("/")
    key = (purpose, policy, int(sequence))
    if int(step) > session.reader.last_step():
        return quiet("That rollout was undone by a rewind; click another.")
    rollouts = session.record(int(step)).rollouts
    row = next(row for row in rollouts if (row.purpose, row.policy, row.sequence) == key)
    note = (
        f"step {step}, {purpose}, {policy} policy, {row.prompt_id}; answer "
        f"{row.extracted or 'not found'}, right {row.answer}; advantage "
        f"{row.advantage:+.3f}; {len(row.token_ids)} tokens"
        + ("" if row.finished else ", cut off by the length limit")
        + _pull(row)
    )
    config = session.reader.config_at(row.step)
    told_why = row.purpose == "train" and terms_known(config)
    terms = session.token_terms(row.step, row.sequence) if told_why else []
    strip = plots.token_strip(token_frame(row, config.training.clip_range, terms), colouring)
    return card(f"Rollout {sequence}", note, row.reward, prompt_block(row.prompt) + strip)


def _pull(row: RolloutRow) -> str:
    """Its inner products with both gradients, where they were measured."""
    if isnan(row.grad_norm):
        return ""
    said = f"; pushes with all rollouts {row.rl_alignment:+.3g} (cosine {row.rl_cosine:+.3f})"
    if not isnan(row.sft_alignment):
        said += f", with the demonstrations {row.sft_alignment:+.3g}"
    return f"{said}, ‖g‖ {row.grad_norm:.3g}"
