"""What another policy would have written: a recorded rollout or a pasted text, on its own noise."""

from __future__ import annotations

import math
from typing import Any

import gradio as gr

from workbench import plots
from workbench.records import Counterfactual, Sample
from workbench.session import Session
from workbench.ui.parts import (
    Updates,
    card,
    figure_json,
    help_text,
    live_plot,
    page,
    pair,
    prompt_block,
    quiet,
    told,
    whole,
)

HELP = (
    "<b>What would another policy have written?</b> The rollout above, or a text you paste, under "
    "the coordinator off or at another scale, the RL-only baseline, the policy the run started "
    "from, or an earlier snapshot. A rollout is drawn again on <b>its own noise</b>; for a pasted "
    "text noise is drawn <b>in hindsight</b>, such that its writer would have written exactly it. "
    "What both texts share is then no chance, and neither is where they part. The colours of the "
    "left text say how much likelier (blue) or less likely (vermilion) the other policy finds each "
    "token. Nothing here changes the run."
)
ROLLOUT, PASTED = "the rollout above", "a pasted text"
NOW = "as it is now"
POLICIES = {
    "joint policy θ+w": "joint",
    "RL-only baseline θ̂+w": "baseline",
    "the policy at the start": "reference",
}


class CounterfactualPanel:
    """The panel's components; `selected` holds step/purpose/policy/sequence of a rollout."""

    def __init__(self, session: Session, selected: Any) -> None:
        """Lay it out and wire it."""
        self.session = session
        help_text(HELP)
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=340):
                source = gr.Radio(
                    [ROLLOUT, PASTED], value=ROLLOUT, label="Text", elem_id="what-text"
                )
                with gr.Column(visible=False) as paste:
                    prompt = gr.Textbox(label="Prompt", lines=2, elem_id="what-prompt")
                    text = gr.Textbox(label="Completion", lines=4, elem_id="what-completion")
                    answer = gr.Textbox(
                        label="Right answer",
                        info="Empty: the reward is only known for prompts of the task.",
                    )
                    finished = gr.Checkbox(True, label="It ended by itself, not cut off")
                    with gr.Row():
                        draws = gr.Slider(1, 4, 2, step=1, label="Draws of noise", min_width=130)
                        seed = gr.Number(0, label="Noise seed", precision=0, minimum=0)
                policy = gr.Dropdown(
                    list(POLICIES),
                    value="joint policy θ+w",
                    label="Other policy",
                    elem_id="what-policy",
                )
                scale = gr.Slider(
                    0, 2, 0, step=0.05, label="Scale of the coordinator", elem_id="what-scale"
                )
                self.weights = gr.Dropdown(
                    [NOW], value=NOW, label="Its weights", elem_id="what-weights"
                )
                ask = gr.Button("Write it again", variant="primary", size="md", elem_id="what-ask")
            with gr.Column(scale=3, min_width=320):
                texts = page(quiet("Both texts appear here side by side."), "what-texts")
                bars = live_plot(
                    250,
                    "plot-counterfactual",
                    "Bars up: tokens of the text that the other policy finds likelier than its "
                    "writer did.",
                    "How much likelier the other policy finds each token of the text.",
                )
        wire: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        source.input(lambda kind: gr.update(visible=kind == PASTED), source, paste, **wire)

        def show(values: Any) -> Updates:
            at = None if values[self.weights] == NOW else int(values[self.weights].split()[-1])
            other: dict[str, Any] = {
                "policy": POLICIES[values[policy]],
                "coordinator": float(values[scale]),
                "snapshot_step": at,
            }
            if values[source] == PASTED:
                found = session.counterfactual(
                    prompt=values[prompt],
                    text=values[text],
                    answer=values[answer].strip() or None,
                    finished=values[finished],
                    rollouts=int(values[draws]),
                    seed=whole(values[seed], "Noise seed"),
                    **other,
                )
            else:
                found = session.counterfactual(**named(values[selected]), **other)
            return {texts: counterfactuals_html(found), bars: figure_json(bars_of(found[0]))}

        inputs = {source, prompt, text, answer, finished, draws, seed, policy, scale, selected}
        wire["show_progress"] = "minimal"
        ask.click(told(show), inputs | {self.weights}, [texts, bars], **wire)

    def draw(self, chosen: str) -> Updates:
        """Offer the snapshots that there are; `chosen` stays where it still is one."""
        steps = self.session.reader.snapshot_steps()
        choices = [NOW, *(f"snapshot of step {step}" for step in reversed(steps))]
        return {
            self.weights: gr.update(choices=choices, value=chosen if chosen in choices else NOW)
        }


def named(row_id: str) -> dict[str, Any]:
    """What `Session.counterfactual` calls a rollout. `row_id`: step/purpose/policy/sequence."""
    if not row_id:
        raise ValueError("No rollout is chosen: click one in the table above.")
    step, purpose, policy, sequence = row_id.split("/")
    return {
        "step": int(step),
        "sequence": int(sequence),
        "purpose": purpose,
        "written_by": policy,
    }


def log_difference(found: Counterfactual) -> list[float]:
    """log π(other) − log π(writer) of each token of the factual text, nats."""
    both = zip(found.logprob, found.factual.logprob, strict=True)
    return [other - writer for other, writer in both]


def bars_of(found: Counterfactual) -> Any:
    """The differences token by token."""
    title = "How much likelier the other policy finds each token of the text"
    return plots.logprob_difference(found.factual.tokens, log_difference(found), [], title)


def counterfactuals_html(found: list[Counterfactual]) -> str:
    """The text beside what the other policy writes on the same noise, once for each draw."""
    first = found[0]
    difference = log_difference(first)
    ratio = math.exp(min(sum(difference), 700.0))
    blocks = [prompt_block(first.factual.prompt)]
    for each in found:
        at = each.first_parting
        parted = "the same text" if at is None else f"they part at token {at}"
        strip = plots.difference_strip(each.factual.tokens, difference, [], at)
        note = f"{parted}; {ratio:.3g} times as likely under the other policy"
        left = card(
            _writer(each.factual, None), _ended(each.factual, note), each.factual.reward, strip
        )
        kind = "on its own noise" if each.noise == "own" else "on noise drawn in hindsight"
        strip = plots.difference_strip(each.other.tokens, [], [], at)
        title = _writer(each.other, each.snapshot_step)
        blocks.append(pair([left, card(title, _ended(each.other, kind), each.other.reward, strip)]))
    return "".join(blocks)


def _writer(sample: Sample, snapshot_step: int | None) -> str:
    names = {"joint": "θ+w", "baseline": "θ̂+w, RL only", "reference": "start of the run"}
    name = names[sample.policy]
    if sample.policy != "reference" and sample.coordinator != 1:
        name += f", coordinator × {sample.coordinator:g}"
    return name if snapshot_step is None else f"{name}, step {snapshot_step}"


def _ended(sample: Sample, note: str) -> str:
    return note if sample.finished else f"{note}, cut off by the length limit"
