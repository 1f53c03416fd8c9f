"""The command `eval` on a small run of the pocket model, and on models and files."""

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from workbench import RunConfig, Session, open_run
from workbench.__main__ import main
from workbench.config import ConfigError
from workbench.store import RunFolderError
from workbench.tasks.sets import load_set

SMALL = {
    "prompts_per_step": 4,
    "group_size": 4,
    "demonstrations_per_step": 8,
    "max_new_tokens": 16,
    "base_lr": 5e-4,
    "alignment_every": 0,
    "paired_gain_every": 0,
    "token_views_every": 0,
    "coordinator_every": 0,
    "evaluate_every": 0,
    "evaluation_max_new_tokens": 32,
    "n_validation": 12,
    "n_hard": 4,
}


@pytest.fixture(scope="module")
def accuracies() -> dict[str, float]:
    return {}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, accuracies: dict[str, float]) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("runs") / "run"
    with Session(RunConfig.preset("pocket", **SMALL), path) as session:
        session.run(3)
        for name in ("joint", "baseline", "reference"):
            accuracies[name] = session.evaluate("validation", name)  # type: ignore[arg-type]
    yield path


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    rows = [{"prompt": f"{a}+{b}=?", "answer": a + b} for a in (3, 12, 30) for b in (4, 9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_session_evaluates_what_it_holds_between_two_steps(tmp_path: Path) -> None:
    with Session(RunConfig.preset("pocket", **SMALL), tmp_path / "run") as session:
        session.run(2)
        before = session.frame("metrics")
        found = session.evaluate_all(["validation", "hard"], samples=1, limit=4, progress=False)
        value = found.scores.set_index(["set", "policy", "metric"])["value"]
        for policy, name in (("joint", "joint"), ("baseline", "baseline"), ("base", "reference")):
            alone = session.evaluate("hard", name, 4)  # type: ignore[arg-type]
            assert value["hard", policy, "pass@1 greedy"] == alone
        assert len(found.completions) == 2 * 4 * 4 * 2  # sets, problems, policies, completions
        kept = session.reader.evaluations()
        assert kept["evaluation"].unique()[0].startswith("step-000002-")
        assert list(kept["value"]) == list(found.scores["value"])
        pd.testing.assert_frame_equal(session.frame("metrics"), before)
        with pytest.raises(ConfigError, match="no such set"):
            session.evaluate_all(["nowhere"])


def test_all_policies_side_by_side(
    run: Path, problems: Path, accuracies: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    before = open_run(run).frame("metrics")
    sets = ["--sets", "validation", str(problems)]
    assert main(["eval", str(run), *sets, "--samples", "2"]) == 0
    said = capsys.readouterr().out
    assert "joint − baseline" in said and "mcnemar" in said
    scores = open_run(run).evaluations()
    value = scores.set_index(["set", "policy", "metric"])["value"]
    for policy, name in (("joint", "joint"), ("baseline", "baseline"), ("base", "reference")):
        assert value["validation", policy, "pass@1 greedy"] == accuracies[name]
    assert set(scores["policy"]) == {"joint", "off", "baseline", "base"}
    assert set(scores["metric"]) == {"pass@1 greedy", "avg@2", "pass@2"}
    assert (scores["low"] <= scores["value"]).all() and (scores["value"] <= scores["high"]).all()
    completions = open_run(run).evaluation(scores["evaluation"].iloc[0])
    assert len(completions) == (12 + 6) * 4 * 3
    part = completions[(completions["set"] == "sums.jsonl") & (completions["policy"] == "off")]
    drawn = part[part["sample"] >= 0].groupby("problem_id")["correct"]
    assert value["sums.jsonl", "off", "avg@2"] == pytest.approx(drawn.mean().mean())
    assert value["sums.jsonl", "off", "pass@2"] == pytest.approx(drawn.max().mean())
    pd.testing.assert_frame_equal(open_run(run).frame("metrics"), before)
    with pytest.raises(RunFolderError, match="no evaluation 'x'"):
        open_run(run).evaluation("x")


def test_a_model_by_itself_is_the_base_of_the_run(
    run: Path, problems: Path, tmp_path: Path
) -> None:
    asked = ["--sets", str(problems), "--samples", "2", "--max-new-tokens", "32"]
    exact = [*asked, "--reward", "exact"]
    assert main(["eval", "pocket", *exact, "--out", str(tmp_path / "model")]) == 0
    assert main(["eval", str(run), *exact, "--policy", "base", "--out", str(tmp_path / "run")]) == 0
    (model,) = (tmp_path / "model").glob("*/completions.parquet")
    (base,) = (tmp_path / "run").glob("*/completions.parquet")
    texts = ["problem_id", "sample", "completion"]
    pd.testing.assert_frame_equal(pd.read_parquet(model)[texts], pd.read_parquet(base)[texts])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sets", "nothing"], "no such set; there are validation"),
        (["--sets", "validation", "--policy", "joint,best"], "there is no 'best'"),
        (["--sets", "validation", "--step", "2"], "no snapshot of step 2; there are: 0, 3"),
        (["--sets", "validation", "--columns", "a=b", "answer=c"], "neither prompt=NAME"),
        (["--sets", "hard", "hard"], "--sets: two are called 'hard'"),
        (["--sets", "hard", "--out", __file__], f"--out: cannot write to {__file__}"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(run), *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("limit", "0"), ("samples", "-1"), ("max-new-tokens", "0"), ("temperature", "0")],
)
def test_numbers_that_mean_nothing_are_refused(
    name: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["eval", "pocket", "--sets", "hard", f"--{name}={value}"])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert f"argument --{name}: '{value}' is not a number" in said and said.count("\n") == 1


def test_a_reward_that_fails_is_told(
    problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--sets", str(problems), "--reward", "choice", "--limit", "2", "--max-new-tokens", "4"]
    assert main(["eval", "pocket", *asked, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "the reward failed on 2 of 2 completions, which count as 0: choice: ValueError" in said


def named(name: str, folder: Path) -> object:
    return load_set(
        name,
        task=None,
        settings=None,
        columns={"prompt": "prompt", "answer": "answer"},
        reward="exact",
        suffix=None,
        folder=folder,
        limit=None,
    )


def test_a_named_set_is_read_from_a_file_placed_for_it(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    row = {"question": "What is 1+1?", "final_answer": ["2", "two"]}
    (tmp_path / "olympiadbench.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    found = named("olympiadbench", tmp_path)
    problem = found.problems[0]  # type: ignore[attr-defined]
    assert problem.answer == "2, two"
    assert problem.prompt.startswith("What is 1+1?\nPlease reason step by step")


def test_offline_a_named_set_says_where_to_place_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(data: str, split: str) -> object:
        raise ConfigError(f"task.data: cannot read {data!r}")

    monkeypatch.setattr("workbench.tasks.sets.read_table", away)
    with pytest.raises(ConfigError, match=r"math500\.jsonl with the columns problem and answer"):
        named("math500", tmp_path)


@pytest.mark.slow
def test_a_local_task_of_the_harness(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval")
    rows = [{"q": f"{a}+{b}=?", "a": f"#{a + b}"} for a in (3, 12) for b in (4, 9)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "sums.yaml").write_text(
        "task: local_sums\n"
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {data}}}}}\n"
        "test_split: test\n"
        "output_type: generate_until\n"
        'doc_to_text: "{{q}}"\n'
        'doc_to_target: "{{a}}"\n'
        "generation_kwargs: {max_gen_toks: 16, do_sample: false, until: ['\\n\\n']}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n",
        encoding="utf-8",
    )
    out = ["--tasks", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["eval", "pocket", "--sets", "lm-eval:local_sums", *out]) == 0
    (summary,) = (tmp_path / "out").glob("*/summary.json")
    found = json.loads(summary.read_text(encoding="utf-8"))["lm_eval"]["local_sums"]
    assert 0 <= found["exact_match"] <= 1
    assert main(["eval", "pocket", "--sets", "lm-eval:no_such_task", *out]) == 2
    assert "this lm-eval has no such task" in capsys.readouterr().err
