"""Comparisons: equal trials, honest statistics, and runs that go on where they stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from math import comb, isnan, nan
from pathlib import Path
from statistics import fmean, stdev

import pandas as pd
import pytest

from tests.training.tiny import save_tiny_llama, small_config
from workbench.comparing.command import parse_budget
from workbench.comparing.jobs import Budget, Comparison, Job, Rates, choose
from workbench.comparing.outcome import Outcome, read_outcome
from workbench.comparing.report import at_the_edge, write_report
from workbench.comparing.running import _finished, compare, execute
from workbench.comparing.tables import (
    curve,
    interval,
    outcome_frame,
    paired_frame,
    sign_flip_p,
    summary_frame,
)
from workbench.config import ConfigError, RunConfig
from workbench.store import RunFolderError, open_run


def comparison(folder: Path, **changes: object) -> Comparison:
    base = Comparison(("sft", "bridge", "relift"), (0, 1), RunConfig(), 6, folder)
    return replace(base, **changes)


def outcome(accuracy: list[float], **changes: object) -> Outcome:
    steps = list(range(1, len(accuracy) + 1))
    return replace(
        Outcome({}, len(accuracy), steps, accuracy, [nan] * len(accuracy), 10.0, 0.0, 1.0, 0),
        **changes,
    )


def test_every_method_has_as_many_trials_on_a_seed_and_task_of_their_own(tmp_path: Path) -> None:
    for k in (1, 3, 8):
        trials = comparison(tmp_path, sweep=k).trials()
        for method in ("sft", "bridge", "relift"):
            mine = [job for job in trials if job.method == method]
            assert len({job.rates for job in mine}) == len(mine) == k
            assert len({job.run for job in mine}) == k
        assert {job.config.get("task_seed") for job in trials} == {1000}
        assert {job.seed for job in trials} == {1000}
    for job in trials:
        assert job.config.training.base_lr == pytest.approx(5e-5 * job.rates.base)
    reports = comparison(tmp_path).reports({"sft": Rates(2.0)})
    assert [job.config.training.base_lr for job in reports] == [1e-4] * 2 + [5e-5] * 4
    assert {job.config.get("task_seed") for job in reports} == {0}


def test_the_best_mean_wins_and_a_tie_goes_to_the_smaller_rate(tmp_path: Path) -> None:
    trials = [job for job in comparison(tmp_path, sweep=3).trials() if job.method == "sft"]
    assert [job.rates.base for job in trials] == [1.0, 0.5, 2.0]
    results = [outcome([0.5, 0.5]), outcome([0.4, 0.6]), outcome([0.1, 0.9])]
    assert choose(list(zip(trials, results, strict=True)), "sft") == Rates(0.5)
    results[2] = outcome([0.7, 0.4])
    assert choose(list(zip(trials, results, strict=True)), "sft") == Rates(2.0)
    results[0] = outcome([nan, nan])
    with pytest.raises(ConfigError, match="no validation problems to choose"):
        choose(list(zip(trials, results, strict=True)), "sft")


def test_rates_may_come_from_the_trials_of_another_comparison(tmp_path: Path) -> None:
    first = comparison(tmp_path / "first", sweep=2)
    flipped = RunConfig().with_changes(reward_flip=0.2)
    other = comparison(tmp_path / "other", base=flipped, methods=("bridge",), tuned_in=first)
    assert other.trials() == [job for job in first.trials() if job.method == "bridge"]
    (job, _) = other.reports({"bridge": Rates(0.5, 4.0)})
    assert job.config.training.base_lr == 2.5e-5 and job.config.training.reward_flip == 0.2
    assert job.run == tmp_path / "other" / "report-bridge-lr0.5x4-seed0"
    with pytest.raises(ConfigError, match="sweep must cover all its methods"):
        comparison(tmp_path, methods=("bridge", "uft"), tuned_in=first)
    with pytest.raises(ConfigError, match="sweep must cover all its methods"):
        comparison(tmp_path, sweep=1, tuned_in=first)


def test_a_best_rate_at_the_edge_is_told(tmp_path: Path) -> None:
    tried = [(job, outcome([0.5])) for job in comparison(tmp_path, sweep=3).trials()]
    reports = comparison(tmp_path).reports({"sft": Rates(2.0), "relift": Rates(0.5)})
    told = at_the_edge(tried, [(job, outcome([0.5])) for job in reports])
    assert told.endswith("the largest for sft; the smallest for relift.")
    assert (
        at_the_edge(tried, [(job, outcome([0.5])) for job in comparison(tmp_path).reports({})])
        == ""
    )


def test_bad_wishes_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="given twice"):
        comparison(tmp_path, seeds=(1, 1))
    with pytest.raises(ConfigError, match="at most 8 trials"):
        comparison(tmp_path, sweep=9)
    with pytest.raises(ConfigError, match="1000 is the seed of the learning-rate trials"):
        comparison(tmp_path, sweep=1, seeds=(1000,))
    assert parse_budget("tokens=200000") == Budget("tokens", 200000)
    assert parse_budget("seconds=2.5") == Budget("seconds", 2.5)
    for text in ("tokens", "tokens=", "hours=1", "seconds=-1"):
        with pytest.raises(ConfigError, match="--budget: say steps"):
            parse_budget(text)


def test_the_interval_is_students() -> None:
    values = [0.2, 0.5, 0.3, 0.8]
    assert interval(values) == pytest.approx(3.1824463 * stdev(values) / 2, rel=1e-6)
    assert interval([0.1, 0.4]) == pytest.approx(12.7062047 * stdev([0.1, 0.4]) / 2**0.5, rel=1e-6)
    assert isnan(interval([0.3]))


def test_sign_flips_by_hand() -> None:
    assert sign_flip_p([1.0, 2.0]) == 0.5  # ±3 of 3, 1, −1, −3
    assert sign_flip_p([1.0, 1.0, 1.0]) == 0.25
    assert sign_flip_p([1.0, -1.0]) == 1.0
    assert sign_flip_p([0.3, 0.1, 0.2, 0.4, 0.5]) == 2 / 32


def test_sign_flips_of_many_pairs_are_drawn() -> None:
    ways = (
        comb(15, i) * comb(15, j)
        for i in range(16)
        for j in range(16)
        if abs((2 * i - 15) + (2 * j - 15) / 2) >= 7.5
    )
    assert sign_flip_p([1.0, -0.5] * 15) == pytest.approx(sum(ways) / 2**30, abs=0.012)
    assert sign_flip_p([1.0] * 30) == pytest.approx(0.0001)


def test_pairs_are_of_equal_seeds() -> None:
    frame = pd.DataFrame(
        {
            "method": ["bridge", "bridge", "sft", "sft", "sft"],
            "seed": [0, 1, 1, 0, 2],
            "accuracy": [0.5, 0.7, 0.6, 0.3, 0.9],
        }
    )
    row = paired_frame(frame, "bridge").iloc[0]
    assert (row["method"], row["n"]) == ("sft", 2)
    assert row["difference"] == pytest.approx(fmean([-0.2, -0.1]))
    assert paired_frame(frame, "grpo").empty


def tiny(folder: Path, run: Path, **changes: object) -> Comparison:
    base = small_config(
        folder,
        n_prompts=8,
        n_validation=3,
        n_hard=2,
        n_demonstrations=8,
        evaluation_max_new_tokens=4,
        evaluate_every=1,
    )
    return replace(Comparison(("sft", "grpo"), (0, 1), base, 3, run), **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


def test_runs_and_their_report(folder: Path, tmp_path: Path) -> None:
    asked = tiny(folder, tmp_path)
    jobs = asked.reports({})
    done = [(job, execute(job)) for job in jobs]
    for job, found in done:
        assert read_outcome(job.run) == found == _finished(job)
        assert found.checkpoints == [1, 2, 3] and len(found.accuracy) == 3
        assert (found.tokens > 0) == (job.method == "grpo")
        assert found.seconds > 0 and found.peak_mb > 50
        course = curve(job, found)
        assert list(course["step"]) == [0, 1, 2, 3]
        assert list(course["accuracy"][1:]) == found.accuracy
        assert list(course["hard_accuracy"][1:]) == found.hard_accuracy
        assert course["seconds"].iloc[0] == 0
        assert course["seconds"].iloc[-1] == pytest.approx(found.seconds)
        assert course["seconds"].is_monotonic_increasing
    outcomes = outcome_frame(done, target=0.0)
    assert list(outcomes["steps_to_target"]) == [0.0] * 4
    assert outcome_frame(done, target=2.0)["steps_to_target"].isna().all()
    assert list(summary_frame(outcomes)["n"]) == [2, 2]
    write_report(asked, done, [], 1)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Plotly.newPlot" in page and 'src="http' not in page and "minus grpo" not in page
    assert (
        (tmp_path / "table.md")
        .read_text()
        .startswith("| method | learning rate (θ, second) | accuracy, % |")
    )
    with pytest.raises(ConfigError, match=r"run with other settings \(base_lr\)"):
        _finished(tiny(folder, tmp_path, base=asked.base.with_changes(base_lr=0.5)).reports({})[0])
    with pytest.raises(ConfigError, match="was run for another budget"):
        _finished(tiny(folder, tmp_path, steps=9).reports({})[0])


def test_a_run_that_was_stopped_goes_on_and_comes_to_the_same(folder: Path, tmp_path: Path) -> None:
    from workbench.session import Session

    whole, stopped = (tiny(folder, tmp_path / name).reports({})[2] for name in ("whole", "stopped"))
    expected = execute(whole)
    with Session(stopped.config, stopped.run) as session:
        session.step()
    found = execute(stopped)
    assert found.accuracy == expected.accuracy and found.checkpoints == [1, 2, 3]
    assert found.tokens == expected.tokens


def test_a_trial_is_judged_by_validation_alone(folder: Path, tmp_path: Path) -> None:
    (job,) = tiny(folder, tmp_path, methods=("sft",), sweep=1).trials()
    found = execute(job)
    assert len(found.accuracy) == 3 and all(map(isnan, found.hard_accuracy))


def test_a_comparison_in_processes_reuses_another_ones_trials(folder: Path, tmp_path: Path) -> None:
    first = tiny(folder, tmp_path / "first", seeds=(0,), steps=1, sweep=2)
    compare(first, jobs=2)
    trials = {path: path.stat().st_mtime_ns for path in first.run.glob("trial-*/outcome.json")}
    assert len(trials) == 4
    other = replace(first, run=tmp_path / "other", sweep=0, tuned_in=first)
    compare(other)
    assert {path: path.stat().st_mtime_ns for path in trials} == trials
    assert len(list(other.run.glob("*/outcome.json"))) == 2
    table = (other.run / "table.md").read_text(encoding="utf-8")
    assert "as 2 trial(s) a method chose them for first. " in table
    assert "| trial |" not in table and "| trial |" in (first.run / "table.md").read_text()


def steps_of(run: Path) -> int:
    """0 as well where the run's folder is just being made."""
    try:
        return open_run(run).last_step()
    except RunFolderError:
        return 0


@pytest.mark.slow
def test_ctrl_c_saves_every_run_and_the_same_command_goes_on(folder: Path, tmp_path: Path) -> None:
    asked = tiny(folder, tmp_path / "stopped", steps=60, seeds=(0,))
    (tmp_path / "run.toml").write_text(asked.base.to_toml(), encoding="utf-8")
    command = [
        sys.executable, "-m", "workbench", "compare", "--config", str(tmp_path / "run.toml"),
        "--methods", "sft,grpo", "--seeds", "0", "--steps", "60", "--jobs", "2",
        "--run", str(asked.run),
    ]  # fmt: skip
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, start_new_session=True, **piped)
    runs = [job.run for job in asked.reports({})]
    while not all(map(steps_of, runs)):
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    told = process.communicate(timeout=120)
    assert process.returncode == 130 and "the same command goes on" in told[1]
    assert "Traceback" not in told[1]
    reached = [steps_of(run) for run in runs]
    assert 0 < min(reached) < 60
    subprocess.run(command, check=True, **piped)
    for job in tiny(folder, tmp_path / "whole", steps=60, seeds=(0,)).reports({}):
        found = read_outcome(asked.run / job.run.name)
        assert found and found.accuracy == execute(job).accuracy and found.steps == 60


def test_a_budget_of_tokens_ends_a_run(folder: Path, tmp_path: Path) -> None:
    job: Job = tiny(folder, tmp_path, steps=50, budget=Budget("tokens", 60)).reports({})[2]
    found = execute(job)
    assert job.method == "grpo" and 60 <= found.tokens < 60 + 3 * 3 * 5
    assert found.steps < 50 and found.checkpoints[-1] == found.steps
