"""Tab Run: start, pause, step, rewind, fork, change settings, and watch the curves."""

from __future__ import annotations

import html
import time
from typing import Any

import gradio as gr
import pandas as pd

from workbench import plots
from workbench.config import Knob
from workbench.config.sections import ProbesConfig
from workbench.probes.cost import probe_costs
from workbench.session import Session
from workbench.ui.absent import absent, used_knobs
from workbench.ui.findings import findings_html
from workbench.ui.from_finding import FromFinding
from workbench.ui.header import INTRODUCTION
from workbench.ui.parts import (
    Column,
    Updates,
    Values,
    View,
    figure_json,
    help_text,
    live_plot,
    live_table,
    page,
    quiet,
    table_json,
    told,
    whole,
)
from workbench.ui.replay import changes_of

TITLE = "Run"
HELP = (
    "Blue is the joint policy θ+w, orange the RL-only baseline θ̂+w. Blue above orange: the "
    "demonstrations help. A number describes the policy its step <b>started</b> from. Dashed "
    "lines mark what you changed. Of a long run a curve that is thinned keeps the highest and the "
    "lowest value of each stretch. Drag in a plot to zoom (it stays zoomed), double-click to go "
    "back."
)
COSTS_HELP = (
    "<b>What each probe costs</b>, over the newest 20 steps. A probe only measures; its schedule "
    "is the setting named here, in the config of a new run or as a change of a fork (0: never)."
)
_COSTS = [
    Column("probe"),
    Column("schedule"),
    Column("% of the time", 1, "share of the newest 20 steps' whole time, per cent"),
    Column("s a step", 3, "mean over the newest 20 steps"),
    Column("s when due", 3, "mean over those of them that had it"),
    Column("setting"),
    Column("what it measures", wrap=True),
]


def build(session: Session) -> View:
    """Lay the tab out and wire its buttons."""
    help_text(INTRODUCTION)
    help_text(HELP)
    lacks = absent(session.config)
    with gr.Row(equal_height=False):
        with gr.Column(scale=0, min_width=320):
            at_step = _controls(session)
            with gr.Accordion("Findings", open=True):
                findings = page("", "findings")
                about = FromFinding(session, at_step)
            knobs = _knobs(session)
        with gr.Column(scale=1, min_width=320):
            figures = _figures()
            seconds = live_plot(
                250, "plot-seconds", "Where the time of a step goes, phase by phase."
            )
            help_text(COSTS_HELP)
            costs = live_table(460, "probe-costs")
    settings = [session.config.get(name) for name in knobs]  # what the fields are made with
    seen_settings, seen_findings, offered = gr.State(repr(settings)), gr.State(""), gr.State(0)

    because = dict.fromkeys(figures, lacks.rollouts)
    because |= {"gain": lacks.gain, "loss": "", "accuracy": "", "grad_norm": ""}

    def draw(values: Values) -> Updates:
        metrics, commands = session.overview("metrics"), session.frame("commands")
        found = session.frame("findings")
        live, told = commands[commands["live"]], found[found["live"]]
        updates: Updates = {
            plot: figure_json(plots.curves(metrics, name, live, told), because[name])
            for name, plot in figures.items()
        }
        if values[at_step] == values[offered]:  # else: a person has entered another
            updates[at_step] = updates[offered] = session.step_number
        updates[seconds] = figure_json(plots.phase_seconds(metrics))
        updates[costs] = cost_table(metrics, session.config.probes)
        listed = findings_html(found)
        if listed != values[seen_findings]:  # else: leave open what was opened
            updates[findings] = updates[seen_findings] = listed
            updates |= about.update(found)
        now = repr([session.config.get(name) for name in knobs])
        if now != values[seen_settings]:  # else: leave what is being typed
            updates[seen_settings] = now
            updates |= {field: session.config.get(name) for name, field in knobs.items()}
        return updates

    outputs = {*figures.values(), seconds, costs, findings, *about.shown, *knobs.values()}
    seen = {seen_settings, seen_findings, offered, at_step}
    return View(seen, outputs | seen, draw)


def _controls(session: Session) -> Any:
    """The buttons; returns the field with the step to rewind to or fork from."""
    with gr.Row():
        run = gr.Button("Run", variant="primary", size="md", elem_id="run", min_width=90)
        pause = gr.Button("Pause", size="md", elem_id="pause", min_width=90)
    with gr.Row(equal_height=True):
        step = gr.Button("1 step", size="md", elem_id="step", min_width=70)
        step_n = gr.Button("N steps", size="md", elem_id="step-n", min_width=70)
        count = gr.Number(
            10,
            label="N",
            show_label=False,
            precision=0,
            minimum=1,
            min_width=70,
            container=False,
            elem_id="count",
        )
    with gr.Accordion("Rewind or fork", open=False):
        at = gr.Number(
            0,
            label="Step",
            info="The run's state at the end of this step; 0 is the start.",
            precision=0,
            minimum=0,
            elem_id="at-step",
        )
        rewind = gr.Button("Rewind to it", size="md", elem_id="rewind")
        folder = gr.Textbox(
            label="Folder of the fork",
            info="A new run that starts at that step; this one stays as it is.",
            placeholder="empty: beside this run",
            elem_id="fork-folder",
        )
        changes = gr.Textbox(
            label="Changes in the fork",
            placeholder="e.g. base_lr=1e-5 group_size=4; empty: none",
            elem_id="fork-changes",
        )
        fork = gr.Button("Fork from it", size="md", elem_id="fork")

    def fork_at(step: float | None, path: str, entered: str) -> None:
        at_end_of = whole(step, "Step")
        name = f"{session.run_dir.name}-from-{at_end_of}-{time.strftime('%H%M%S')}"
        target = path.strip() or str(session.run_dir.parent / name)
        session.fork(target, step=at_end_of, **changes_of(entered)).close()
        gr.Info(f"Forked. Open it with: python app.py --run {html.escape(target)}", duration=30)

    def go() -> None:
        if session.state == "paused":  # to the end that was set
            session.go_on()
        else:
            session.start()

    wire: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    run.click(told(go), **wire)
    pause.click(told(lambda: session.pause()), **wire)
    step.click(told(lambda: session.start(1)), **wire)
    step_n.click(told(lambda n: session.start(whole(n, "N"))), count, **wire)
    wire["show_progress"] = "minimal"
    rewind.click(told(lambda n: session.rewind(whole(n, "Step"))), at, **wire)
    fork.click(told(fork_at), [at, folder, changes], **wire)
    return at


def _knobs(session: Session) -> dict[str, Any]:
    with gr.Accordion("Live settings", open=True):
        page(quiet("They hold from the next step on, and are marked on the curves."))
        used = used_knobs(session.config)
        fields = {knob.name: _field(knob, session) for knob in session.knobs if knob.name in used}
        apply = gr.Button("Apply settings", size="md", elem_id="apply")

    def change(*entered: float | None) -> None:
        now = session.config
        changes = {
            name: value
            for name, value in zip(fields, entered, strict=True)
            if value is not None and value != now.get(name)
        }
        if not changes:
            gr.Info("Nothing was changed.")
            return
        session.set(**changes)
        said = ", ".join(f"{name} = {value:g}" for name, value in changes.items())
        gr.Info(f"From the next step on: {html.escape(said)}")

    apply.click(
        told(change), list(fields.values()), show_progress="hidden", api_visibility="private"
    )
    return fields


def _field(knob: Knob, session: Session) -> Any:
    value = session.config.get(knob.name)
    doc, _, _ = knob.doc.partition(" [")
    if not knob.log and knob.high <= 1:
        return gr.Slider(
            knob.low,
            knob.high,
            value,
            step=0.01,
            label=knob.name,
            info=doc,
            elem_id=f"knob-{knob.name}",
        )
    return gr.Number(
        value,
        label=knob.name,
        info=f"{doc} ({knob.low:g} to {knob.high:g})",
        minimum=knob.low,
        maximum=knob.high,
        elem_id=f"knob-{knob.name}",
    )


def _figures() -> dict[str, Any]:
    with gr.Row():
        return {
            name: live_plot(246, f"plot-{name}", panel.what) for name, panel in plots.PANELS.items()
        }


def cost_table(metrics: pd.DataFrame, schedule: ProbesConfig) -> str:
    """What each probe takes of a step, the dearest first, as a live table takes it."""
    fields = ProbesConfig.model_fields
    found = probe_costs(metrics, schedule)
    rows = [
        (
            row.probe.replace("_", " "),
            {0: "off", 1: "every step"}.get(row.every, f"every {row.every} steps"),
            100 * row.share,
            row.a_step,
            row.when_due,
            row.setting,
            fields[row.setting].description or "",
        )
        for row in found.itertuples()
    ]
    return table_json(_COSTS, rows, list(found["probe"]), "")
