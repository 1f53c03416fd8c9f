"""Sets evaluated during training, each on its own schedule: measured, replayed, counted, drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workbench import RunConfig, Session, open_run, plots
from workbench.__main__ import main
from workbench.config import ConfigError
from workbench.probes.cost import probe_costs
from workbench.records import SET_ACCURACY

SMALL = RunConfig.preset("pocket").with_changes(
    prompts_per_step=2,
    group_size=2,
    demonstrations_per_step=2,
    max_new_tokens=4,
    alignment_every=0,
    shared_gain_every=0,
    paired_gain_every=0,
    token_views_every=0,
    coordinator_every=0,
    evaluate_every=0,
    evaluation_max_new_tokens=24,
    snapshot_every=1,
    n_validation=6,
    n_hard=4,
)


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    rows = [{"q": f"{a}+{b}=?", "a": a + b} for a in (3, 12, 30) for b in (4, 9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def with_sets(*sets: dict[str, object]) -> RunConfig:
    return SMALL.with_changes(evaluation_sets=list(sets))


def scheduled(sums: Path) -> RunConfig:
    columns = {"prompt_column": "q", "answer_column": "a"}
    return with_sets(
        {"set": str(sums), "every": 2, **columns},
        {"set": "hard", "name": "long <chains>", "every": 3, "problems": 3},
    )


@pytest.fixture(scope="module")
def run(sums: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    with Session(scheduled(sums), path) as session:
        session.run(4)
    return path


def test_each_set_follows_its_own_schedule_and_the_config_its_file(run: Path, sums: Path) -> None:
    metrics = open_run(run).frame("metrics").set_index("step")
    measured = {
        name.removeprefix(SET_ACCURACY): list(metrics.index[metrics[name].notna()])
        for name in metrics
        if name.startswith(SET_ACCURACY)
    }
    assert measured == {"sums.jsonl": [1, 2, 4], "long <chains>": [1, 3]}
    assert RunConfig.load(run / "config.toml") == scheduled(sums)


def test_the_numbers_are_those_of_the_command_eval(run: Path, sums: Path) -> None:
    recorded = open_run(run).frame("metrics").set_index("step")[f"{SET_ACCURACY}sums.jsonl"]
    asked = ["--sets", str(sums), "--columns", "prompt=q", "answer=a", "--policy", "joint"]
    found = []
    for step in (1, 3):  # a step's numbers are of the policy it began with
        assert main(["eval", str(run), *asked, "--step", str(step)]) == 0
        found.append(open_run(run).evaluations()["value"].iloc[-1])
    assert found == list(recorded[[2, 4]])
    assert max(found) > 0  # the pocket model can add


def test_they_change_no_number_of_the_run_and_are_replayed(run: Path) -> None:
    recorded = open_run(run).frame("metrics")
    with Session(SMALL, run.parent / "without") as session:
        session.run(2)
    without = open_run(run.parent / "without").frame("metrics")
    for name in ("reward", "grad_norm", "baseline/grad_norm", "loss/sft"):
        assert list(without[name]) == list(recorded[name][:2]), name
    with Session.resume(run) as session:
        replayed = session.replay(2)
        assert replayed.identical
    assert f"{SET_ACCURACY}sums.jsonl" in replayed.metrics


def test_their_cost_is_told_apart(run: Path, sums: Path) -> None:
    costs = probe_costs(open_run(run).frame("metrics"), scheduled(sums).probes).set_index("probe")
    for name, every in (("sums.jsonl", 2), ("long <chains>", 3)):
        row = costs.loc[f"evaluation/{name}"]
        assert (row["setting"], row["every"]) == ("evaluation_sets", every)
        assert 0 < row["share"] < 1 and row["when_due"] > 0


def test_each_set_is_a_line_of_the_accuracy_plot(run: Path) -> None:
    drawn = plots.curves(open_run(run).frame("metrics"), "accuracy")
    lines = {trace.name: list(trace.x) for trace in drawn.data}
    assert lines == {"sums.jsonl": [1, 2, 4], "long &lt;chains&gt;": [1, 3]}


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([{"set": "lm-eval:gsm8k"}], "evaluation_sets.set: 'lm-eval:gsm8k' needs the exported"),
        ([{"set": "hard"}, {"set": "hard"}], "two are called 'hard'; give one another name"),
        ([{"set": "hard", "every": 0}], "probes.evaluation_sets.0.every: .*greater than or equal"),
        ([{"every": 3}], "probes.evaluation_sets.0.set: Field required"),
        ([{"set": "hard", "problem": 3}], "probes.evaluation_sets.0.problem: no such setting"),
    ],
)
def test_what_is_wrong_with_the_settings_is_said(
    sets: list[dict[str, object]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        with_sets(*sets)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (
            {"set": "math5000"},
            "^probes.evaluation_sets math5000: no such set; there are validation",
        ),
        ({"set": "away.jsonl"}, "^probes.evaluation_sets away.jsonl: there is no file"),
        ({"set": "SUMS"}, "row 1 has nothing in column 'prompt' .* name them with prompt_column"),
    ],
)
def test_a_set_that_cannot_be_had_ends_the_run_before_it_begins(
    chosen: dict[str, object], message: str, sums: Path, tmp_path: Path
) -> None:
    chosen = {"set": str(sums)} if chosen["set"] == "SUMS" else chosen
    with pytest.raises(ConfigError, match=message):
        Session(with_sets(chosen), tmp_path / "run")
    assert not (tmp_path / "run").exists()
