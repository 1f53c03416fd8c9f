"""Tab Evaluations: evaluate the run's policies side by side, and read every completion."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr
import pandas as pd

from workbench.session import Session
from workbench.store import evaluations
from workbench.ui.header import folder_name
from workbench.ui.parts import (
    Column,
    Updates,
    Values,
    View,
    card,
    help_text,
    live_table,
    page,
    pair,
    prompt_block,
    quiet,
    table_json,
    told,
    whole,
)
from workbench.worker import SessionError

TITLE = "Evaluations"
HELP = (
    "The policies of this run side by side on the same problems: <b>joint</b> θ+w, the "
    "coordinator <b>off</b>, the RL-only <b>baseline</b> θ̂+w and the <b>base</b> model. Make one "
    "here, between two steps, or for other sets (math500, aime24, gym:NAME, a file) by "
    "<code>{command}</code>. Click a problem to read what each policy wrote."
)
SPLITS = ("validation", "hard")
_SCORES = [
    Column("set"),
    Column("policy"),
    Column("metric", help="pass@1 greedy; avg@k and pass@k of k samples"),
    Column("%", 1),
    Column("95 % from", 1, "bootstrap over problems"),
    Column("to", 1),
    Column("problems", 0),
]
_COMPARISONS = [
    Column("set"),
    Column("difference"),
    Column("metric"),
    Column("points", 1, "of a hundred"),
    Column("95 % from", 1),
    Column("to", 1),
    Column("p", 4, "paired over problems"),
    Column("test"),
]
MOST = 4
"""Samples of each policy that are shown behind its greedy completion."""


def build(session: Session) -> View:
    """Lay the tab out and wire it."""
    folder = session.run_dir / evaluations.EVALUATIONS
    run = folder_name(session.run_dir)
    command = f"python -m workbench eval {run} --sets validation hard --samples 8"
    help_text(HELP.format(command=html.escape(command)))
    with gr.Row(equal_height=False):
        sets = gr.CheckboxGroup(SPLITS, value=["validation"], label="Sets", elem_id="evaluate-sets")
        limit = gr.Number(
            64, label="Problems of each", precision=0, minimum=1, elem_id="evaluate-limit"
        )
        samples = gr.Number(
            0, label="Samples a problem", info="beside the greedy one: avg@k, pass@k",
            precision=0, minimum=0, elem_id="evaluate-samples",
        )  # fmt: skip
        evaluate = gr.Button("Evaluate now", elem_id="evaluate", size="md", min_width=160)
    # its choices grow: any value is taken, and draw keeps to what is there
    chosen = gr.Dropdown(
        [], label="Evaluation", elem_id="evaluation", allow_custom_value=True, interactive=True
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=380):
            scores = live_table(300, "evaluation-scores")
        with gr.Column(scale=1, min_width=380):
            comparisons = live_table(300, "evaluation-comparisons")
    problems = live_table(380, "evaluation-problems")
    texts = page(quiet("Click a problem to read what each policy wrote."), "evaluation-texts")

    def draw(values: Values) -> Updates:
        found = evaluations.scores(folder)
        names = list(dict.fromkeys(found["evaluation"]))[::-1]
        name = values[chosen] if values[chosen] in names else next(iter(names), None)
        mine = found[found["evaluation"] == name]
        summary = evaluations.summary(folder, name) if name else {"comparisons": []}
        completions = evaluations.completions(folder, name) if name else pd.DataFrame()
        return {
            chosen: gr.update(choices=names, value=name),
            scores: score_table(mine),
            comparisons: comparison_table(summary["comparisons"]),
            problems: problem_table(completions),
        }

    view = View({chosen}, {chosen, scores, comparisons, problems}, draw)
    quietly: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    chosen.input(told(draw), view.inputs, view.outputs, **quietly)

    def evaluate_now(values: Values) -> Updates:
        if not values[sets]:
            raise SessionError("Evaluate now: choose a set")
        n, k = whole(values[limit], "Problems of each"), values[samples] or 0
        session.evaluate_all(values[sets], int(k), n)
        return draw({chosen: None})

    evaluate.click(
        told(evaluate_now),
        {sets, limit, samples},
        view.outputs,
        show_progress="minimal",
        api_visibility="private",
    )

    def pick(name: str, event: gr.EventData) -> str:
        return written(evaluations.completions(folder, name), event.value)

    problems.pick(told(pick), chosen, texts, **quietly)
    return view


def score_table(found: pd.DataFrame) -> str:
    """The scores of an evaluation as a live table takes them."""
    rows = [
        (s.set, s.policy, s.metric, 100 * s.value, 100 * s.low, 100 * s.high, s.n_problems)
        for s in found.itertuples()
    ]
    return table_json(_SCORES, rows, [_id(row) for row in rows], "No evaluation has been made yet.")


def comparison_table(found: list[dict[str, Any]]) -> str:
    """The paired differences between policies as a live table takes them."""
    rows = [
        (
            c["set"],
            f"{c['first']} − {c['second']}",
            c["metric"],
            100 * c["difference"],
            100 * c["low"],
            100 * c["high"],
            c["p_value"],
            c["test"],
        )
        for c in found
    ]
    empty = "Differences between policies appear here, with paired tests."
    return table_json(_COMPARISONS, rows, [_id(row) for row in rows], empty)


def _id(row: tuple[Any, ...]) -> str:
    return "/".join(map(str, row[:3]))


def problem_table(completions: pd.DataFrame) -> str:
    """The problems of an evaluation with each policy's mean reward, as a live table takes them."""
    if completions.empty:
        return table_json([], [], [], "The problems appear here.")
    policies = list(dict.fromkeys(completions["policy"]))
    columns = [Column("set"), Column("prompt"), Column("answer")]
    columns += [Column(name, 2, "share of its completions that are right") for name in policies]
    rows, ids = [], []
    for (chosen, problem), part in completions.groupby(["set", "problem_id"], sort=False):
        right = part.groupby("policy")["correct"].mean()
        first = part.iloc[0]
        shares = [float(right.get(name, float("nan"))) for name in policies]
        rows.append((chosen, first["prompt"].strip(), first["answer"], *shares))
        ids.append(f"{chosen}/{problem}")
    return table_json(columns, rows, ids, "")


def written(completions: pd.DataFrame, problem: str) -> str:
    """What each policy wrote on a problem ('set/id'), side by side, greedy first, as HTML."""
    mine = completions[completions["set"] + "/" + completions["problem_id"] == problem]
    columns = []
    for policy, part in mine.groupby("policy", sort=False):
        cards = []
        for row in part.sort_values("sample", kind="stable").head(MOST + 1).to_dict("records"):
            title = "greedy" if row["sample"] < 0 else f"sample {row['sample'] + 1}"
            note = f"answer {row['extracted'] or 'not found'}; {row['n_tokens']} tokens"
            if not row["finished"]:
                note += ", cut off by the length limit"
            if row["reward_error"]:
                note += f"; {row['reward_error']}"
            cards.append(card(title, note, row["reward"], prompt_block(row["completion"])))
        columns.append(f"<div><h4>{html.escape(str(policy))}</h4>{''.join(cards)}</div>")
    first = mine.iloc[0]
    asked = f"{problem}; right answer {first['answer']}"
    return card("Problem", asked, None, prompt_block(first["prompt"])) + pair(columns)
