"""Tab Data: prompts and demonstrations as the model sees them, overlaps, the reward tried out."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import gradio as gr
import pandas as pd

from workbench import plots
from workbench.inspecting import MOST, Seen
from workbench.plots.tokens import visible
from workbench.session import Session
from workbench.tasks import Score
from workbench.ui.parts import (
    Column,
    Updates,
    Values,
    View,
    card,
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
from workbench.worker import SessionError

TITLE = "Data"
HELP = (
    "What the run trains and is evaluated on. Click a row to see it <b>token by token as the model "
    "sees it</b>, chat template included; the solution of a demonstration is shaded."
)
REWARD_HELP = (
    "<b>Try the reward</b>: what the run would give for a completion, part by part. Click a row "
    "above for its prompt and right answer."
)
OVERLAP_HELP = (
    "<b>Overlaps</b>: prompts to evaluate on that the training prompts or demonstrations give "
    "away, equal ones and those that share a run of so many words in a row."
)
SPLITS = ("train", "validation", "hard", "demonstrations")
_COLUMNS = [
    Column("prompt"),
    Column("answer", help="what the reward compares"),
    Column("solution", help="of a demonstration"),
    Column("prompt tokens", 0),
    Column("solution tokens", 0, "the end token included"),
    Column("id"),
]
_OVERLAPS = [
    Column("evaluated on"),
    Column("trained on"),
    Column("kind"),
    Column("share", 2, "of the evaluation prompt's runs of words that the training text has"),
    Column("split"),
]


def build(session: Session) -> View:
    """Lay the tab out and wire it."""
    help_text(HELP)
    with gr.Row(equal_height=True):
        split = gr.Radio(SPLITS, value="train", label="Show", elem_id="data-split", scale=2)
        note = page("", "data-note")
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=460):
            table = live_table(430, "data-table")
        with gr.Column(scale=2, min_width=380):
            lengths = live_plot(
                430,
                "plot-lengths",
                "Prompts of each split and the demonstrations' solutions, in tokens.",
            )
    detail = page(quiet("Click a row to see its tokens."), "data-detail")
    help_text(REWARD_HELP)
    with gr.Row(equal_height=False):
        prompt = gr.Textbox(label="Prompt", elem_id="score-prompt", lines=2, scale=2)
        answer = gr.Textbox(label="Right answer", elem_id="score-answer", lines=2, scale=1)
        completion = gr.Textbox(label="Completion", elem_id="score-completion", lines=2, scale=2)
        ask = gr.Button("Score it", elem_id="score", size="md", scale=0, min_width=120)
    scored = page("", "scored")
    help_text(OVERLAP_HELP)
    with gr.Row(equal_height=False):
        words = gr.Number(8, label="Words in a row", precision=0, minimum=1, scale=0, min_width=160)
        look = gr.Button("Look for overlaps", elem_id="overlaps", size="md", scale=0, min_width=180)
    found = live_table(320, "overlap-table", "Nothing was looked for yet.")

    drawn = gr.State("")  # the split this browser shows: data do not change in a run

    def draw(values: Values) -> Updates:
        if values[drawn] == values[split]:
            return {}
        try:
            data = session.data()
        except SessionError as error:  # the run is only read here
            return {
                drawn: values[split],
                table: table_json([], [], [], str(error)),
                lengths: figure_json(plots.empty("Lengths", str(error))),
            }
        return {
            drawn: values[split],
            table: data_table(data, values[split]),
            lengths: figure_json(plots.length_histogram(data)),
            note: data_note(data, session.dropped(), values[split]),
        }

    view = View({split, drawn}, {table, lengths, note, drawn}, draw)
    quietly: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    split.input(told(draw), view.inputs, view.outputs, **quietly)
    # the tab's first draw may end after this one, with the split that was chosen when it began
    drawn.change(told(draw), view.inputs, view.outputs, **quietly)

    def pick(event: gr.EventData) -> tuple[str, str, str]:
        chosen, _, name = event.value.partition("/")
        data = session.data()
        row = data[(data["split"] == chosen) & (data["id"] == name)].iloc[0]
        seen = session.seen(row["prompt"], row["solution"])
        return seen_html(name, seen), row["prompt"], row["answer"]

    table.pick(told(pick), None, [detail, prompt, answer], **quietly)

    def try_reward(asked: str, right: str, text: str) -> str:
        known = (session.data()["prompt"] == asked) & (session.data()["answer"] == right)
        own = known & (session.data()["split"] != "demonstrations")
        return score_html(session.score(text, asked, None if own.any() else right), text)

    ask.click(told(try_reward), [prompt, answer, completion], scored, **quietly)

    def look_for(n: float) -> str:
        return overlap_table(session.overlaps(whole(n, "Words in a row")))

    look.click(told(look_for), words, found, **quietly)
    return view


def data_note(data: pd.DataFrame, dropped: dict[str, int], split: str) -> str:
    """How many rows there are, and how many were left out."""
    n, out = int((data["split"] == split).sum()), dropped.get(split, 0)
    said = f"the first {n:,}" if n == MOST else f"{n:,} rows"
    left = f"; {out:,} left out: too long, or held out" if out else ""
    return quiet(f"{said}{left}")


def data_table(data: pd.DataFrame, split: str) -> str:
    """The rows of a split as a live table takes them. `data`: `Session.data()`."""
    part = data[data["split"] == split]
    rows = [
        (
            row.prompt,
            row.answer,
            row.solution,
            row.prompt_tokens,
            row.solution_tokens if row.solution else float("nan"),
            row.id,
        )
        for row in part.itertuples()
    ]
    return table_json(_COLUMNS, rows, [f"{split}/{name}" for name in part["id"]], "None here.")


def overlap_table(found: pd.DataFrame) -> str:
    """Overlaps as a live table takes them. `found`: `Session.overlaps()`."""
    rows = [
        (row.held_out_text, row.train_text, row.kind, row.share, row.split)
        for row in found.itertuples()
    ]
    return table_json(_OVERLAPS, rows, list(found["held_out"]), "No overlaps found.")


def seen_html(name: str, seen: Seen) -> str:
    """A text token by token as HTML, every piece escaped, the solution shaded."""
    spans = _spans(seen.prompt, seen.prompt_ids, "transparent")
    spans += _spans(seen.solution, seen.solution_ids, "rgba(10,134,207,0.16)")
    n, m = len(seen.prompt_ids), len(seen.solution_ids)
    told_of = f"{n} tokens of prompt" + (f", {m} of solution" if m else "")
    strip = f'<div class="token-strip"><div class="tokens">{"".join(spans)}</div></div>'
    return card(name, told_of, None, strip)


def _spans(pieces: Sequence[str], ids: Sequence[int], colour: str) -> list[str]:
    return [
        f'<span style="background:{colour}" title="{html.escape(f"{piece!r}, id {token}")}">'
        f"{visible(piece)}</span>"
        for piece, token in zip(pieces, ids, strict=True)
    ]


def score_html(found: Score, completion: str) -> str:
    """What the rewards say as HTML, part by part."""
    note = f"answer found: {found.extracted or 'none'}"
    parts = "".join(
        f"<li>{html.escape(name)}: <b>{value:g}</b></li>" for name, value in found.parts.items()
    )
    error = f'<p class="wb-error">{html.escape(found.error)}</p>' if found.error else ""
    text = f'<div class="wb-prompt">{html.escape(completion)}</div>'
    return card("Score", note, found.reward, f"{f'<ul>{parts}</ul>' if parts else ''}{error}{text}")
