"""What can be done about a finding: see its samples, go to the step before it, fork with a fix."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr
import pandas as pd

from workbench.session import Session
from workbench.ui.parts import Updates, card, page, prompt_block, quiet, told

MOST = 6
"""Samples shown."""
MOST_CHOICES = 40
"""Findings to choose from: the newest."""


class FromFinding:
    """A chooser of findings with three buttons. `rewind_to` is the field that a step is put in."""

    def __init__(self, session: Session, rewind_to: Any) -> None:
        with gr.Column(visible=False) as self.all:
            self.chosen = gr.Dropdown(
                [],
                label="Do something about",
                info="Before it: the step to rewind to. Samples: what carries it. Fork: a new run "
                "from before it, with the suggested setting.",
                elem_id="finding",
                allow_custom_value=True,
            )
            with gr.Row():
                before = gr.Button("Before it", size="md", elem_id="finding-before", min_width=80)
                samples = gr.Button("Samples", size="md", elem_id="finding-samples", min_width=80)
                fork = gr.Button("Fork", size="md", elem_id="finding-fork", min_width=80)
        self.shown = (self.all, self.chosen)
        self.samples = page("", "finding-shown")

        def go_before(key: str | None) -> int:
            place = session.before(key or "")
            gr.Info(
                f"It still was well after step {place.step} (snapshot {place.snapshot_step}): "
                "the step is set under “Rewind or fork”."
            )
            return place.step

        def show(key: str | None) -> str:
            return samples_html(session, key or "")

        def make_fork(key: str | None) -> None:
            with session.fork_with(key or "") as made:
                folder = str(made.run_dir)
            gr.Info(f"Forked. Open it with: python app.py --run {html.escape(folder)}", duration=30)

        wire: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private"}
        before.click(told(go_before), self.chosen, rewind_to, **wire)
        samples.click(told(show), self.chosen, self.samples, **wire)
        fork.click(told(make_fork), self.chosen, **wire)

    def update(self, findings: pd.DataFrame) -> Updates:
        """The live findings to choose from, the newest first. `findings`: frame "findings"."""
        keyed = findings[findings["live"] & (findings["key"] != "")]
        choices = [
            (f"{row.detector}, since step {row.since}", row.key)
            for row in keyed.iloc[: -MOST_CHOICES - 1 : -1].itertuples()
        ]
        newest = choices[0][1] if choices else None
        return {
            self.chosen: gr.update(choices=choices, value=newest),
            self.all: gr.update(visible=bool(choices)),
        }


def samples_html(session: Session, key: str) -> str:
    """The rollouts and demonstrations that carry a finding, as HTML."""
    found = session.samples_of(key)
    cards = [
        card(
            f"Rollout {row.sequence}",
            f"step {row.step}, answer {row.extracted or 'not found'}, right {row.answer}, "
            f"advantage {row.advantage:+.2f}",
            row.reward,
            prompt_block(row.prompt) + prompt_block(row.completion),
        )
        for row in found.rollouts.head(MOST).itertuples()
    ]
    cards += [
        card(
            row.demonstration_id,
            f"cosine with RL {row.rl_cosine:+.3f}, loss {row.loss:.3f}",
            None,
            prompt_block(row.prompt) + prompt_block(row.solution),
        )
        for row in found.demonstrations.head(MOST // 2).itertuples()
    ]
    return "".join(cards) or quiet(f"No sample of step {found.step} carries it.")
