"""Tab Branches: this run, its forks and its rewinds as one tree, a metric of all on one chart."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pandas as pd

from workbench import plots
from workbench.session import Session
from workbench.store import branch_metrics, run_tree
from workbench.store.tree import family
from workbench.ui.parts import (
    Column,
    Updates,
    Values,
    View,
    figure_json,
    first_metric,
    help_text,
    live_plot,
    live_table,
    table_json,
    told,
)

TITLE = "Branches"
HELP = (
    "What became of this run: a fork begins a branch, and so does a rewind (↶). The steps they "
    "share are drawn once; what a rewind gave up is dotted. Open another branch with "
    "<code>python app.py --run FOLDER</code>."
)
_COLUMNS = [
    Column("branch"),
    Column("grew from"),
    Column("at step", 0),
    Column("to step", 0),
    Column("changed"),
    Column("reward", 3, "the last training reward it measured"),
    Column("accuracy", 3, "the last greedy accuracy on the validation split"),
    Column("state"),
    Column("folder"),
]


def build(session: Session) -> View:
    """Lay the tab out and wire it."""
    help_text(HELP)
    # its choices grow with the run: any value is taken, and the chart says where there is nothing
    metric = gr.Dropdown(
        ["reward"],
        value="reward",
        label="Metric",
        elem_id="branch-metric",
        allow_custom_value=True,
    )
    chart = live_plot(
        430,
        "plot-branches",
        "Steps that branches share are drawn once, by the branch they were made in.",
    )
    table = live_table(320, "branch-table")

    def draw(values: Values) -> Updates:
        runs = [run for run, _ in family(session.run_dir)]
        measured = dict.fromkeys(name for run in runs for name in run.metric_names())
        names = [name for name in measured if not name.startswith("seconds/")]
        # the field begins with "reward"; what a person asks for is shown, also where it is empty
        shown = first_metric(names) if values[metric] == "reward" else values[metric]
        tree, metrics = run_tree(session.run_dir), branch_metrics(session.run_dir, [shown])
        return {
            metric: gr.update(choices=names or ["reward"], value=shown),
            chart: figure_json(plots.branches(tree, metrics, shown)),
            table: tree_table(tree, str(session.reader.path)),
        }

    view = View({metric}, {metric, chart, table}, draw)
    quietly: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    metric.input(told(draw), view.inputs, view.outputs, **quietly)
    return view


def tree_table(tree: pd.DataFrame, own: str) -> str:
    """A tree as a live table takes it; the newest branch of the run `own` is marked."""
    depth: dict[str, int] = {}
    rows = []
    for row in tree.itertuples():
        depth[row.node] = depth[row.parent] + 1 if row.parent in depth else 0
        rows.append(
            (
                "    " * depth[row.node] + row.node,
                row.parent,
                row.from_step,
                row.to_step,
                row.changes,
                row.reward,
                row.accuracy,
                row.state,
                row.run,
            )
        )
    mine = tree[tree["run"] == own]["node"]
    selected = mine.iloc[-1] if len(mine) else None
    return table_json(_COLUMNS, rows, list(tree["node"]), "There is no run here.", selected)
