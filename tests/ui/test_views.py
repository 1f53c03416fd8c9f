"""What the app makes of a run, without a browser: what is absent, only read, or evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import gradio as gr
import pandas as pd
import pytest

from tests.hostile import STRINGS
from workbench.config import KNOBS, RunConfig
from workbench.config.run import MethodName
from workbench.evaluation.evaluate import comparison_frame, score_frame
from workbench.session import Session
from workbench.store import RunStore
from workbench.ui import run
from workbench.ui.absent import absent, used_knobs
from workbench.ui.evaluations import comparison_table, problem_table, score_table, written
from workbench.ui.read_only import ReadOnlySession, only_to_read
from workbench.worker import SessionError


def preset(method: str, **changes: object) -> RunConfig:
    return RunConfig.preset("pocket", method=method, **changes)


def test_bridge_lacks_nothing_and_listens_to_all_but_the_weight_of_naive_mix() -> None:
    lacks = absent(preset("bridge"))
    assert (lacks.rollouts, lacks.demonstrations, lacks.gain, lacks.coordinator) == ("",) * 4
    assert {knob.name for knob in KNOBS} - set(used_knobs(preset("bridge"))) == {"sft_weight"}


def test_what_other_methods_lack_is_named() -> None:
    sft, grpo = absent(preset("sft")), absent(preset("grpo"))
    assert "sft draws no rollouts" in sft.alignment and sft.alignment == sft.gain
    assert "grpo learns from no demonstrations" in grpo.alignment
    assert "track_baseline = true" in grpo.gain
    assert absent(preset("grpo", track_baseline=True)).gain == ""
    assert set(used_knobs(preset("sft"))) == {"base_lr", "max_grad_norm"}


@pytest.mark.parametrize("method", get_args(MethodName))
def test_every_knob_that_is_offered_is_one(method: str) -> None:
    assert "base_lr" in used_knobs(preset(method))
    assert ("coordinator_lr" in used_knobs(preset(method))) == (method == "bridge")


def test_of_a_method_of_ones_own_nothing_is_claimed() -> None:
    own = preset("nowhere:Mine")  # it need not even be importable
    assert absent(own).gain == "" and len(used_knobs(own)) == len(KNOBS)


def test_a_run_that_another_holds_is_read_and_not_touched(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "run", preset("sft")):
        assert only_to_read(tmp_path / "run")
        session = ReadOnlySession(tmp_path / "run")
        assert (session.step_number, session.config.method) == (0, "sft")
        assert "has it open" in session.why
        for refused in (session.start, session.pause, session.replay, session.data):
            with pytest.raises(SessionError, match="only reads the run. Process"):
                refused()
    assert not only_to_read(tmp_path / "run")
    assert "Go on with it by: python app.py --run" in session.why


COMPLETIONS = pd.DataFrame(
    [
        {
            "set": "validation",
            "policy": policy,
            "problem_id": problem,
            "prompt": f"{problem} {STRINGS[0]}",
            "completion": f"{policy} {problem} {sample} {STRINGS[0]}",
            "answer": "4",
            "extracted": "4" if right else "",
            "reward": float(right),
            "correct": right,
            "sample": sample,
            "finished": True,
            "n_tokens": 3,
            "reward_error": "",
        }
        for policy in ("joint", "off")
        for problem in ("p/0", "p/1")
        for sample in (-1, 0, 1)
        for right in [policy == "joint" and (problem == "p/0" or sample == 0)]
    ]
)


def test_an_evaluation_is_listed_by_policy_and_by_problem() -> None:
    scores = json.loads(score_table(score_frame(COMPLETIONS)))["rows"]
    assert ["validation", "joint", "pass@1 greedy", 50.0] in [row[:4] for row in scores]
    assert ["validation", "joint", "avg@2", 75.0] in [row[:4] for row in scores]
    compared = comparison_frame(COMPLETIONS, ["joint", "off"]).to_dict("records")
    rows = json.loads(comparison_table(compared))["rows"]
    assert ["validation", "joint − off", "avg@2", 75.0] in [row[:4] for row in rows]
    table = json.loads(problem_table(COMPLETIONS))
    assert [row[-2:] for row in table["rows"]] == [[1.0, 0.0], [pytest.approx(1 / 3), 0.0]]
    assert table["ids"] == ["validation/p/0", "validation/p/1"]
    assert json.loads(problem_table(pd.DataFrame()))["rows"] == []


def test_what_each_policy_wrote_is_shown_as_text_greedy_first() -> None:
    shown = written(COMPLETIONS, "validation/p/1")
    at = [shown.index(f"{policy} p/1 {n} ") for policy in ("joint", "off") for n in (-1, 0, 1)]
    assert at == sorted(at) and "p/0" not in shown
    assert "<img" not in shown


def test_the_first_draw_leaves_alone_what_is_being_typed(tmp_path: Path) -> None:
    """Two are under way while a page opens, and the second may end seconds later."""
    with Session(preset("bridge"), tmp_path / "run") as session:
        with gr.Blocks():
            view = run.build(session)
        opened = {component: component.value for component in view.inputs}

        def set_fields() -> dict[str, float]:
            named = {getattr(c, "elem_id", None) or "": v for c, v in view.draw(opened).items()}
            return {name: value for name, value in named.items() if name.startswith("knob-")}

        assert set_fields() == {}
        session.set(rl_weight=0.7)
        assert set_fields()["knob-rl_weight"] == 0.7
