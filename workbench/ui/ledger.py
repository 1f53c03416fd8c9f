"""The demonstration ledger in the tab Gradient alignment: rank, read, set aside, export."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from workbench import plots
from workbench.probes.ledger import ledger, suspects
from workbench.records import AnswerRow
from workbench.session import Session
from workbench.ui.parts import (
    Column,
    Updates,
    card,
    figure_json,
    help_text,
    live_plot,
    live_table,
    page,
    prompt_block,
    quiet,
    table_json,
    told,
    whole,
)

HELP = (
    "<b>The ledger</b>: what each demonstration has done over all its visits. Its contribution is "
    "the sum of its inner products with the RL gradient, ± the standard error of that sum: a "
    "demonstration that lies clear below zero has pushed against RL time and again. The score "
    "ranks suspects, the highest first. <b>Ask for answers</b>: eight rollouts of the RL-only "
    "baseline (of the joint policy where there is none) on each one's prompt vote on the answer "
    "that it shows, and those they contradict come first. That tells wrong from unfamiliar, which "
    "the score does not. Set one aside and later steps draw others; it can be taken back."
)
_COLUMNS = [
    Column("rank", 0, "1 is the most suspect"),
    Column("demonstration"),
    Column("prompt"),
    Column("visits", 0, "times it was drawn"),
    Column("contribution", 4, "sum over visits of ⟨g, g RL⟩ over θ: above zero pushes with RL"),
    Column("± SE", 4, "standard error of that sum, from the spread over visits; – with one visit"),
    Column("cosine", 3, "mean over visits of cos(g, g RL)"),
    Column("score", 3, "how suspect it is, higher is more"),
    Column("contradicted", 2, "votes for another answer − for its own, −1 to 1; – until asked"),
    Column("loss", 3, "nats a token, at the newest visit"),
    Column("loss drop", 3, "since the first visit"),
    Column("‖g‖", 3, "mean over visits"),
    Column("last visit", 0, "step"),
    Column("set aside"),
    Column("solution"),
]
_SAVE = """(text) => {
  if (!text) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/jsonl" }));
  link.download = "suspects.jsonl";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}"""
"""The browser saves what it is given as a file."""


class LedgerView:
    """The components of the ledger, which the tab updates."""

    def __init__(self, session: Session, reveal: Any, scatter: Any) -> None:
        """Lay it out and wire it; `scatter` is a figure whose points are demonstrations."""
        self.session = session
        self.answers: list[AnswerRow] = []
        """What the policy's rollouts said when it was last asked; every browser sees the same."""
        help_text(HELP)
        with gr.Row():
            count = gr.Number(
                20,
                label="How many suspects",
                precision=0,
                minimum=1,
                elem_id="suspects",
                scale=0,
                min_width=180,
            )
            with gr.Column(scale=0, min_width=240):
                export = gr.Button("Export them as JSONL", size="md", elem_id="export-suspects")
                all_aside = gr.Button("Set them aside", size="md", elem_id="suspects-aside")
            with gr.Column(scale=0, min_width=240):
                ask = gr.Button("Ask for answers", size="md", elem_id="ask-answers")
                forget = gr.Button("Rank by the score alone", size="md", elem_id="forget-answers")
        saved = gr.Textbox(visible=False)
        self.table = live_table(420, "demonstration-table")
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=420):
                self.detail = page(
                    quiet("Click a demonstration to read it."), "demonstration-detail"
                )
                self.picked = gr.State("")
                with gr.Row(visible=False) as decide:
                    aside = gr.Button("Set it aside", size="md", elem_id="set-aside")
                    back = gr.Button("Take it back", size="md", elem_id="take-back")
            self.visits = live_plot(
                300,
                "plot-visits",
                "Above: what each visit pushed with RL (blue) or against it, and the sum so far ± "
                "its standard error. Below: its loss.",
            )
        quietly: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

        def pick(show_quality: bool, event: gr.EventData) -> Updates:
            visits = session.overview("demonstrations")
            return self.shown(event.value, show_quality, visits) | {
                self.picked: event.value,
                decide: gr.update(visible=True),
            }

        outputs = [self.detail, self.visits, self.picked, decide]
        for source in (scatter, self.table):
            source.pick(told(pick), reveal, outputs, **quietly)

        def change(name: str) -> Any:
            def act(picked: str, show_quality: bool) -> Updates:
                getattr(session, name)(picked)
                return self.draw(picked, show_quality)

            return told(act)

        outputs = [self.detail, self.visits, self.table]
        aside.click(change("set_aside"), [self.picked, reveal], outputs, **quietly)
        back.click(change("take_back"), [self.picked, reveal], outputs, **quietly)

        def asked(picked: str, show_quality: bool) -> Updates:
            visited = list(session.ledger()["demonstration_id"])
            self.answers = session.check_answers(visited)
            return self.draw(picked, show_quality)

        def forgotten(picked: str, show_quality: bool) -> Updates:
            self.answers = []
            return self.draw(picked, show_quality)

        slowly = quietly | {"show_progress": "minimal"}
        ask.click(told(asked), [self.picked, reveal], outputs, **slowly)
        forget.click(told(forgotten), [self.picked, reveal], outputs, **quietly)

        def set_suspects_aside(n: float, picked: str, show_quality: bool) -> Updates:
            worst = suspects(session.ledger(self.answers), whole(n, "How many suspects"))
            ids = list(worst["demonstration_id"])
            session.set_aside(ids)
            gr.Info(f"{len(ids)} demonstrations are set aside from the next step on.")
            return self.draw(picked, show_quality)

        all_aside.click(told(set_suspects_aside), [count, self.picked, reveal], outputs, **quietly)

        def exported(n: float) -> str:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "suspects.jsonl"
                n_suspects = whole(n, "How many suspects")
                if session.export_suspects(file, n_suspects, answers=self.answers) == 0:
                    raise ValueError("No demonstration has a score yet: take a step first.")
                return file.read_text(encoding="utf-8")

        export.click(told(exported), count, saved, **quietly).success(None, saved, js=_SAVE)

    def draw(self, picked: str, show_quality: bool, visits: pd.DataFrame | None = None) -> Updates:
        """The table, and the demonstration that was picked, for what the run holds now.

        visits: the overview "demonstrations" where it was read already.
        """
        if visits is None:
            visits = self.session.overview("demonstrations")
        aside = set(self.session.config.get("set_aside"))
        table = ledger_table(ledger(visits, self.answers), aside, show_quality)
        return {self.table: table} | self.shown(picked, show_quality, visits)

    def shown(self, picked: str, show_quality: bool, visits: pd.DataFrame) -> Updates:
        """One demonstration's text and visits."""
        updates: Updates = {self.visits: figure_json(plots.demonstration_visits(visits, picked))}
        if picked:
            answer = next((row for row in self.answers if row.demonstration_id == picked), None)
            aside = picked in self.session.config.get("set_aside")
            detail = demonstration_detail(visits, picked, show_quality, aside, answer)
            updates[self.detail] = detail
        return updates


def ledger_table(ledger: pd.DataFrame, aside: set[str], show_quality: bool) -> str:
    """`Session.ledger()` as a live table takes it, the most suspect first."""
    rows = [
        (
            row.rank,
            row.demonstration_id,
            row.prompt.strip(),
            row.visits,
            row.contribution,
            row.standard_error * row.measured,
            row.cosine,
            row.score,
            row.disagreement,
            row.loss,
            row.loss_drop,
            row.grad_norm,
            row.last_step,
            "yes" if row.demonstration_id in aside else "",
            row.solution,
            *([row.quality] if show_quality else []),
        )
        for row in ledger.itertuples()
    ]
    columns = [*_COLUMNS, Column("quality")] if show_quality else _COLUMNS
    empty = "No demonstration has been measured yet: it comes with each step (alignment_every)."
    return table_json(columns, rows, list(ledger["demonstration_id"]), empty)


def demonstration_detail(
    visits: pd.DataFrame,
    demonstration_id: str,
    show_quality: bool,
    set_aside: bool,
    answer: AnswerRow | None = None,
) -> str:
    """One demonstration, with its numbers at its newest visit, as HTML.

    visits: frame "demonstrations". answer: what the policy's rollouts said of its answer, where it
    was asked.
    """
    visits = visits[visits["demonstration_id"] == demonstration_id]
    if visits.empty:
        return quiet("The visits of that demonstration were undone by a rewind; click another.")
    row = visits.sort_values("step", kind="stable").iloc[-1]
    note = (
        f"step {row['step']}: inner product with RL {row['rl_alignment']:+.3g}, "
        f"cosine {row['rl_cosine']:+.3f}, loss {row['loss']:.3f} nats a token, "
        f"{row['n_tokens']} tokens, over w {row['rl_alignment_coordinator']:+.3g}"
    )
    if answer is not None and answer.answer:
        note += f"; of {answer.n_rollouts} rollouts {answer.agree:.0%} come to its {answer.answer}"
        note += f", {answer.other:.0%} to {answer.other_answer}" if answer.other_answer else ""
    if show_quality:
        note += f", hidden quality: {row['quality']}"
    if set_aside:
        note += "; set aside: no step draws it"
    body = prompt_block(row["prompt"]) + prompt_block(row["solution"])
    return card(demonstration_id, note, None, body)
