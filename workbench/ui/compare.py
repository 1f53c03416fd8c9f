"""Tab Compare: runs of the same folder beside each other."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import gradio as gr

from workbench import plots
from workbench.comparing.runs import (
    NEWEST,
    config_differences,
    metric_names,
    newest_rollouts,
    prompt_gain,
    runs_in,
)
from workbench.session import Session
from workbench.store import Run, open_run
from workbench.ui.parts import (
    Column,
    Updates,
    Values,
    View,
    card,
    figure_json,
    first_metric,
    help_text,
    live_plot,
    live_table,
    page,
    pair,
    prompt_block,
    quiet,
    table_json,
    told,
)

TITLE = "Compare"
HELP = (
    "Runs that lie beside this one. Choose some to overlay a metric and to see which settings "
    "differ. Below, two runs prompt by prompt: the mean reward of each on the prompts both have "
    f"met in their last {NEWEST} steps, without rollouts that had help. Click a prompt to read "
    "what each run wrote."
)
_GAIN = [
    Column("prompt"),
    Column("first", 2, "mean reward of the first run"),
    Column("second", 2),
    Column("first − second", 2),
    Column("±", 2, "standard error of the difference"),
    Column("rollouts, first", 0),
    Column("rollouts, second", 0),
]


def build(session: Session) -> View:
    """Lay the tab out and wire it."""
    help_text(HELP)
    folder, own = session.run_dir.parent, _name(session.run_dir, session.run_dir.parent)
    with gr.Row():
        # their choices change with the folder: any value is taken, and draw keeps to what is there
        free: dict[str, Any] = {"allow_custom_value": True}
        chosen = gr.Dropdown(
            [own],
            value=[own],
            multiselect=True,
            label="Runs",
            elem_id="compare-runs",
            scale=3,
            **free,
        )
        metric = gr.Dropdown(
            ["reward"], value="reward", label="Metric", elem_id="compare-metric", scale=1, **free
        )
    with gr.Row(equal_height=False):
        with gr.Column(scale=3):
            overlay = live_plot(
                330, "plot-compare", "The chosen metric of the chosen runs, step by step."
            )
        with gr.Column(scale=2):
            different = live_table(330, "compare-settings")
    with gr.Row():
        first = gr.Dropdown([own], value=own, label="First run", elem_id="compare-first", **free)
        second = gr.Dropdown([own], value=own, label="Second run", elem_id="compare-second", **free)
    gains = live_table(300, "compare-gain")
    texts = page(quiet("Click a prompt to read what each run wrote."), "compare-texts")

    def draw(values: Values) -> Updates:
        names = [_name(run.path, folder) for run in runs_in(folder)]
        wanted = [name for name in values[chosen] if name in names] or [own]
        runs = [open_run(folder / name) for name in wanted]
        metrics = metric_names(runs)
        shown = first_metric(metrics, values[metric])
        ends = [values[end] if values[end] in names else own for end in (first, second)]
        frames = {
            name: run.frame("metrics", only=[shown]) for name, run in zip(wanted, runs, strict=True)
        }
        return {
            chosen: gr.update(choices=names, value=wanted),
            metric: gr.update(choices=metrics, value=shown),
            first: gr.update(choices=names, value=ends[0]),
            second: gr.update(choices=names, value=ends[1]),
            overlay: figure_json(plots.overlaid_runs(frames, shown)),
            different: settings_table(wanted, runs),
            gains: gain_table(open_run(folder / ends[0]), open_run(folder / ends[1])),
        }

    controls = {chosen, metric, first, second}
    view = View(controls, {*controls, overlay, different, gains}, draw)
    quietly: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    for control in (chosen, metric, first, second):
        control.input(told(draw), view.inputs, view.outputs, **quietly)

    def pick(one: str, other: str, event: gr.EventData) -> str:
        return written(folder, (one, other), event.value)

    gains.pick(told(pick), [first, second], texts, **quietly)
    return view


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def settings_table(names: list[str], runs: list[Run]) -> str:
    """The settings that differ, as a live table takes them."""
    frame = config_differences(runs)
    columns = [Column("setting"), *(Column(name) for name in names)]
    rows = [list(row) for row in frame.itertuples(index=False)]
    empty = "Choose two runs or more." if len(runs) < 2 else "These runs have the same settings."
    return table_json(columns, rows, list(frame["setting"]), empty)


def gain_table(first: Run, second: Run) -> str:
    """Two runs prompt by prompt, as a live table takes them."""
    if first.path == second.path:
        return table_json(_GAIN, [], [], "Choose two different runs.")
    frame = prompt_gain(newest_rollouts(first), newest_rollouts(second))
    rows = [
        (
            row.prompt.strip(),
            row.first,
            row.second,
            row.gain,
            row.standard_error,
            row.n_first,
            row.n_second,
        )
        for row in frame.itertuples()
    ]
    empty = "The two runs have met no prompt in common in their last steps."
    return table_json(_GAIN, rows, list(frame["prompt_id"]), empty)


def written(folder: Path, names: tuple[str, str], prompt_id: str, most: int = 4) -> str:
    """What two runs wrote on a prompt, side by side, the newest first, as HTML."""
    columns = []
    for name in names:
        rollouts = newest_rollouts(open_run(folder / name))
        mine = rollouts[rollouts["prompt_id"] == prompt_id].iloc[::-1]
        cards = [
            card(f"step {row.step}, {row.purpose}", "", row.correct, prompt_block(row.completion))
            for row in mine.head(most).itertuples()
        ]
        columns.append(f"<h4>{html.escape(name)}</h4>{''.join(cards)}")
    return pair([f"<div>{column}</div>" for column in columns])
