"""Tab Cooperative gain: which prompts the coordinator helps, and the rollouts behind a number."""

from __future__ import annotations

import html
import math
from typing import Any, Literal

import gradio as gr
import numpy as np
import pandas as pd

from workbench import plots
from workbench.probes.tokens import log_ratio_of_text
from workbench.session import Session
from workbench.ui.absent import absent
from workbench.ui.parts import (
    Column,
    Updates,
    Values,
    View,
    card,
    figure_json,
    help_text,
    lacking,
    live_plot,
    live_table,
    page,
    pair,
    prompt_block,
    quiet,
    table_json,
    thinned_note,
    told,
)

TITLE = "Cooperative gain"
HELP = (
    "The gain of a prompt is the mean reward of the joint policy minus that of the RL-only "
    "baseline under the same coordinator. <b>paired</b> samples both with the same noise "
    "(measured every few steps on a fixed set of prompts, the truth); <b>shared</b> reweights "
    "the step's own rollouts (free, each step) and is left blank, ×, where too few of them "
    "count. Of the prompts shown as helped or hurt by the paired gain about one in twenty is "
    "expected to be wrong; the shared gain of one prompt is only a hint, and so is its verdict. "
    "Click a cell, a point or a row to see the rollouts."
)
_COLUMNS = [
    Column("prompt"),
    Column("gain", 3, "joint − RL-only"),
    Column("SE", 3, "standard error of the gain"),
    Column("95 % from", 3, "lower end of the 95 % interval"),
    Column("to", 3, "upper end of the 95 % interval"),
    Column("verdict"),
    Column("joint", 2, "mean reward of θ+w"),
    Column("RL-only", 2, "mean reward of θ̂+w"),
    Column("step", 0),
    Column("ESS", 1, "effective sample size of the importance weights"),
]

_HINTS = {
    "plot-gain-time": (
        "Mean over the prompts of a measurement, with its 95 % interval: above zero the "
        "demonstrations help. An interval that crosses zero says nothing."
    ),
    "plot-gain-shares": (
        "Helped and hurt: prompts whose gain is told from zero (5 % false discoveries). "
        "Blanked: too few rollouts count to say."
    ),
    "plot-gain-heatmap": (
        "A row a prompt, a column a measurement. Blue: the joint policy earns more; "
        "vermilion: RL alone does. Click a cell to read its rollouts."
    ),
    "plot-gain-prompts": (
        "The newest measurement, sorted, with 95 % intervals. Click a prompt to read its rollouts."
    ),
}
"""How to read each figure."""


def build(session: Session) -> View:
    """Lay the tab out and wire it."""
    help_text(HELP)
    why = absent(session.config).gain
    lacking(why)
    with gr.Row():
        estimator = gr.Radio(
            ["paired", "shared"], value="paired", label="Estimate", elem_id="estimator", scale=1
        )
        rows = gr.Radio(
            ["prompt", "rank"],
            value="prompt",
            label="Rows of the heat map",
            info="rank sorts each step by itself: for prompts that seldom come back",
            elem_id="gain-rows",
            scale=2,
        )
        measure = gr.Button(
            "Measure the paired gain now", elem_id="measure-gain", size="md", scale=1, min_width=240
        )
    measured = gr.State(None)
    note = page()
    with gr.Row():
        over_time = live_plot(270, "plot-gain-time", _HINTS["plot-gain-time"])
        shares = live_plot(270, "plot-gain-shares", _HINTS["plot-gain-shares"])
    with gr.Row():
        heatmap = live_plot(430, "plot-gain-heatmap", _HINTS["plot-gain-heatmap"])
        by_prompt = live_plot(430, "plot-gain-prompts", _HINTS["plot-gain-prompts"])
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=460):
            table = live_table(430, "gain-table")
        with gr.Column(scale=1, min_width=460):
            detail = page(quiet("Click a prompt to see its rollouts side by side."), "gain-detail")

    def draw(values: Values) -> Updates:
        gain = session.overview("gain")
        updates: Updates = {note: thinned_note(gain)}
        kind = values[estimator]
        newest = values[measured]
        if newest is not None:
            fresh = pd.DataFrame(newest)
            known = gain[(gain["estimator"] != "paired") | ~gain["step"].isin(fresh["step"])]
            gain = pd.concat([known, fresh], ignore_index=True) if len(known) else fresh
        return updates | {
            over_time: figure_json(plots.gain_over_time(gain), why),
            shares: figure_json(plots.gain_shares(gain, kind), why),
            heatmap: figure_json(plots.gain_heatmap(gain, kind, rows=values[rows]), why),
            by_prompt: figure_json(plots.gain_by_prompt(gain, estimator=kind), why),
            table: gain_table(gain, kind, why),
        }

    drawn = {note, over_time, shares, heatmap, by_prompt, table}
    view = View({estimator, rows, measured}, drawn, draw)
    quietly: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    for control in (estimator, rows):
        control.input(draw, view.inputs, view.outputs, **quietly)

    def measure_now(values: Values) -> Updates:
        # a row of step t describes what step t starts from; this is what the next step starts from
        found = [vars(row) | {"step": row.step + 1} for row in session.paired_gain()]
        mean = float(np.mean([row["gain"] for row in found]))
        gr.Info(
            f"Paired gain after step {session.step_number}: {mean:+.3f} over {len(found)} prompts"
        )
        return {measured: found, estimator: "paired"} | draw(
            {estimator: "paired", rows: values[rows], measured: found}
        )

    measure.click(
        told(measure_now),
        view.inputs,
        view.outputs | {measured, estimator},
        show_progress="minimal",
        api_visibility="private",
    )

    def pick(event: gr.EventData) -> str:
        return prompt_detail(session, event.value)

    def pick_cell(event: gr.EventData) -> str:
        return prompt_detail(session, event.value, int(event.x))

    heatmap.pick(told(pick_cell), None, detail, **quietly)
    for source in (by_prompt, table):
        source.pick(told(pick), None, detail, **quietly)
    return view


def gain_table(
    gain: pd.DataFrame, estimator: Literal["paired", "shared"], because: str = ""
) -> str:
    """The newest gain of each prompt, largest first, as a live table takes it.

    `because`: why there is none for good, if there is none.
    """
    chosen = plots.newest_gain(gain, estimator)
    rows = [
        (
            row.prompt.strip(),
            row.gain,
            row.standard_error,
            row.low,
            row.high,
            row.verdict,
            row.joint_reward,
            row.baseline_reward,
            row.step,
            row.ess,
        )
        for row in chosen.itertuples()
    ]
    empty = because or f"No {estimator} gain has been measured yet."
    shown = len(_COLUMNS) - (estimator == "paired")  # paired rollouts have no weights
    cells = [row[:shown] for row in rows]
    return table_json(_COLUMNS[:shown], cells, list(chosen["prompt_id"]), empty)


def prompt_detail(session: Session, prompt_id: str, near: int | None = None) -> str:
    """The rollouts of a prompt under both policies at the step nearest to `near`, as HTML.

    None: the newest. Paired rollouts where there are any, each beside the one drawn with the same
    noise; else the step's own rollouts with their importance weight for the RL-only baseline.
    """
    gain = session.frame("gain")
    visits = gain[gain["prompt_id"] == prompt_id].sort_values("step", kind="stable")
    if visits.empty:
        return quiet("This prompt was measured on demand; its rollouts were not kept.")
    paired = visits[visits["estimator"] == "paired"]
    steps = (paired if len(paired) else visits)["step"].to_list()
    step = steps[-1] if near is None else min(steps, key=lambda at: abs(at - near))
    rollouts = session.reader.rollouts(step)
    rollouts = rollouts[rollouts["prompt_id"] == prompt_id]
    both = rollouts[rollouts["purpose"] == "paired"]
    if both.empty:
        own = rollouts[rollouts["purpose"] == "train"]
        return _head(own, f"step {step}, own rollouts") + pair([_own_card(r) for r in _rows(own)])
    joint = {row["sequence"]: row for row in _rows(both[both["policy"] == "joint"])}
    alone = {row["sequence"]: row for row in _rows(both[both["policy"] == "baseline"])}
    cards = [
        text
        for number, sequence in enumerate(sorted(joint.keys() & alone.keys()), start=1)
        for text in _couple(number, joint[sequence], alone[sequence])
    ]
    note = f"step {step}: joint policy left, RL-only baseline right, the same noise in each row"
    return _head(both, note) + f'<div class="wb-couples">{"".join(cards)}</div>'


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return frame.to_dict("records")


def _head(rollouts: pd.DataFrame, note: str) -> str:
    first = rollouts.iloc[0]
    return (
        f'<div class="wb-card"><h4>{html.escape(first["prompt_id"])}<span>{html.escape(note)}; '
        f"right answer {html.escape(first['answer'])}</span></h4>"
        f"{prompt_block(first['prompt'])}</div>"
    )


def _couple(number: int, joint: dict[str, Any], alone: dict[str, Any]) -> tuple[str, str]:
    parting = first_difference(list(joint["token_ids"]), list(alone["token_ids"]))
    note = "same text" if parting is None else f"they part at token {parting}"
    return tuple(  # type: ignore[return-value]
        card(
            f"{title} {number}",
            note,
            row["reward"],
            plots.difference_strip(list(row["tokens"]), [], [], parting),
        )
        for title, row in (("joint", joint), ("RL-only", alone))
    )


def _own_card(row: dict[str, Any]) -> str:
    note = f"rollout {row['sequence']}, advantage {row['advantage']:+.2f}"
    if len(row["baseline_logprob"]):
        log_weight = log_ratio_of_text(row["baseline_logprob"], row["sampling_logprob"])
        weight = math.exp(log_weight)
        note += f", {weight:.3g} times as likely under RL-only"
    strip = plots.difference_strip(list(row["tokens"]), [], [])
    return card("joint", note, row["reward"], strip)


def first_difference(first: list[int], second: list[int]) -> int | None:
    """Index of the first token where two sequences differ; None if they are equal."""
    for at, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return at
    return None if len(first) == len(second) else min(len(first), len(second))
