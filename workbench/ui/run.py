"""Tab Run: start, pause, step, rewind, fork, change settings, and watch the curves."""

from __future__ import annotations

import html
import time
from typing import Any

import gradio as gr
import pandas as pd

from workbench import plots
from workbench.config import ConfigError, Knob
from workbench.config.sections import ProbesConfig
from workbench.probes.cost import probe_costs
from workbench.session import Session
from workbench.ui.findings import findings_html
from workbench.ui.from_finding import FromFinding
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
)

TITLE = "Run"
HELP = (
    "Blue is the joint policy θ+w, orange the RL-only baseline θ̂+w. Blue above orange: the "
    "demonstrations help. A number describes the policy its step <b>started</b> from. Dashed "
    "lines mark what you changed. Drag in a plot to zoom (it stays zoomed), double-click to go "
    "back."
)


_COSTS = [
    Column("probe", help="what is measured beside training; hover a row for more"),
    Column("schedule", help="set in the config, see the setting's name; 0 is off"),
    Column("share of the time", 1, "per cent of the newest 20 steps"),
    Column("s a step", 3, "mean over the newest 20 steps"),
    Column("s when due", 3, "mean over those of them that had it"),
    Column("setting"),
    Column("what it measures"),
]


def build(session: Session) -> View:
    """Lay the tab out and wire its buttons."""
    help_text(HELP)
    with gr.Row(equal_height=False):
        with gr.Column(scale=0, min_width=320):
            at_step = _controls(session)
            with gr.Accordion("Findings", open=True):
                findings = page("", "findings")
                about = FromFinding(session, at_step)
            knobs = _knobs(session)
        with gr.Column(scale=1, min_width=600):
            figures = _figures()
            seconds = live_plot(250, "plot-seconds")
            costs = live_table(300, "probe-costs")
    seen_settings, seen_findings = gr.State(""), gr.State("")

    def draw(values: Values) -> Updates:
        metrics, commands = session.frame("metrics"), session.frame("commands")
        found = session.frame("findings")
        live, told = commands[commands["live"]], found[found["live"]]
        updates: Updates = {
            plot: figure_json(plots.curves(metrics, name, live, told))
            for name, plot in figures.items()
        }
        updates[seconds] = figure_json(plots.phase_seconds(metrics))
        updates[costs] = cost_table(metrics, session.config.probes)
        listed = findings_html(found)
        if listed != values[seen_findings]:  # else: leave open what was opened
            updates[findings] = updates[seen_findings] = listed
            updates |= about.update(found)
        settings = repr([session.config.get(knob.name) for knob in session.knobs])
        if settings != values[seen_settings]:  # else: leave what is being typed
            updates[seen_settings] = settings
            for knob in session.knobs:
                updates[knobs[knob.name]] = session.config.get(knob.name)
        return updates

    outputs = {*figures.values(), seconds, costs, findings, about.chosen, *knobs.values()}
    seen = {seen_settings, seen_findings}
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
            None,
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
        fork = gr.Button("Fork from it", size="md", elem_id="fork")

    def asked(step: float | None) -> int:
        if step is None:
            raise ConfigError("Step: say at the end of which step")
        return int(step)

    def fork_at(step: float | None, path: str) -> None:
        name = f"{session.run_dir.name}-from-{asked(step)}-{time.strftime('%H%M%S')}"
        target = path.strip() or str(session.run_dir.parent / name)
        session.fork(target, step=asked(step)).close()
        gr.Info(f"Forked. Open it with: python app.py --run {html.escape(target)}", duration=30)

    wire: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    run.click(told(lambda: session.start()), **wire)
    pause.click(told(lambda: session.pause()), **wire)
    step.click(told(lambda: session.start(1)), **wire)
    step_n.click(told(lambda n: session.start(int(n))), count, **wire)
    wire["show_progress"] = "minimal"
    rewind.click(told(lambda n: session.rewind(asked(n))), at, **wire)
    fork.click(told(fork_at), [at, folder], **wire)
    return at


def _knobs(session: Session) -> dict[str, Any]:
    with gr.Accordion("Live settings", open=True):
        gr.HTML(quiet("They hold from the next step on."))
        fields = {knob.name: _field(knob, session) for knob in session.knobs}
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
    figures = {}
    names = list(plots.PANELS)
    for at in range(0, len(names), 3):
        with gr.Row():
            for name in names[at : at + 3]:
                figures[name] = live_plot(246, f"plot-{name}")
    return figures


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
