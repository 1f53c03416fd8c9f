"""Runs beside each other, from their folders."""

from __future__ import annotations

from math import isnan, sqrt
from pathlib import Path

import gradio as gr
import pandas as pd
import pytest

from tests.training.tiny import save_tiny_llama, small_config
from workbench import plots
from workbench.comparing.runs import (
    config_differences,
    metric_names,
    newest_rollouts,
    prompt_gain,
    runs_in,
)
from workbench.session import Session
from workbench.store import open_run
from workbench.ui import compare
from workbench.ui.compare import gain_table, settings_table, written


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = save_tiny_llama(tmp_path_factory.mktemp("tiny"))
    folder = tmp_path_factory.mktemp("runs")
    for method in ("grpo", "uft"):
        data = {"n_prompts": 3, "n_validation": 0, "n_hard": 0, "n_demonstrations": 3}
        config = small_config(model, method=method, **data)
        with Session(config, folder / method) as session:
            session.run(2)
    return folder


def test_the_runs_of_a_folder_and_what_differs(folder: Path) -> None:
    runs = runs_in(folder)
    assert [run.path.name for run in runs] == ["grpo", "uft"]
    assert config_differences(runs).values.tolist() == [["method", "grpo", "uft"]]
    assert config_differences(runs[:1]).empty
    assert {"reward", "loss/rl", "loss/sft"} <= set(metric_names(runs))
    assert "timeline" not in metric_names(runs)


def test_rollouts_that_had_a_hint_are_left_out(folder: Path) -> None:
    grpo, uft = runs_in(folder)
    assert len(newest_rollouts(grpo)) == 2 * 9
    assert len(newest_rollouts(grpo, 1)) == 9
    hinted = sum(bool(row.written_by) for step in (1, 2) for row in uft.record(step).rollouts)
    assert 0 < hinted == 18 - len(newest_rollouts(uft))


def test_gain_of_each_prompt_by_hand() -> None:
    def rows(*found: tuple[str, float]) -> pd.DataFrame:
        frame = pd.DataFrame(found, columns=["prompt_id", "correct"])
        return frame.assign(prompt=frame["prompt_id"] + "?")

    first = rows(("a", 1), ("a", 0), ("a", 1), ("b", 0), ("c", 1), ("c", 1))
    second = rows(("a", 0), ("a", 0), ("b", 1), ("d", 1), ("c", 1), ("c", 0))
    found = prompt_gain(first, second).set_index("prompt_id")
    assert list(found.index) == ["b", "a", "c"]
    assert found.loc["a", "gain"] == pytest.approx(2 / 3)
    assert found.loc["a", "standard_error"] == pytest.approx(sqrt((1 / 3) / 3))
    assert found.loc["c", "standard_error"] == pytest.approx(sqrt(0.5 / 2))
    assert isnan(found.loc["b", "standard_error"])
    assert prompt_gain(first, second.iloc[:0]).empty


def test_the_tabs_pieces_escape_what_a_model_wrote(folder: Path) -> None:
    runs = runs_in(folder)
    assert '"grpo"' in settings_table(["a", "b"], runs)
    assert "two different runs" in gain_table(runs[0], runs[0])
    prompt = open_run(folder / "grpo").record(1).rollouts[0]
    shown = written(folder, ("grpo", "uft"), prompt.prompt_id)
    assert "step 2, train" in shown or "step 1, train" in shown
    assert "<h4>grpo</h4>" in shown
    frames = {"<b>x": runs[0].frame("metrics"), "y": runs[1].frame("metrics")}
    figure = plots.overlaid_runs(frames, "reward")
    assert [line.name for line in figure.data] == ["&lt;b&gt;x", "y"]
    assert not plots.overlaid_runs(frames, "no such metric").data


def test_the_tab_draws_and_keeps_to_runs_that_are_there(folder: Path) -> None:
    with Session.open(folder / "grpo") as session, gr.Blocks():
        view = compare.build(session)
        by_id = {component.elem_id: component for component in view.outputs}
        runs, metric, first, second = (
            by_id[f"compare-{name}"] for name in ("runs", "metric", "first", "second")
        )
        values = {runs: ["uft", "gone"], metric: "loss/sft", first: "grpo", second: "uft"}
        drawn = view.draw(values)
        assert drawn.keys() == view.outputs
        assert drawn[runs]["value"] == ["uft"] and drawn[runs]["choices"][0] == "grpo"
        assert drawn[metric]["value"] == "loss/sft"
        assert '"name":"uft"' in drawn[by_id["plot-compare"]]
        assert view.draw({**values, runs: [], second: "gone"})[second]["value"] == "grpo"
