"""The benchmark scripts run, go on where they stopped, and choose what they say they choose."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.methods import LEARNING_RATES, METHODS, Job, Result, choose

ROOT = Path(__file__).parents[1]


def _result(method: str, base_lr: float, accuracy: float) -> Result:
    job = Job("trial", method, 1, 1, base_lr, 0.0, steps=1, problems=1)
    return Result(job, [accuracy], hard_accuracy=[0.0], seconds=0.0, reward=[])


def _run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_method_has_the_same_number_of_distinct_trials():
    for method in METHODS:
        assert len(set(LEARNING_RATES[method])) == len(LEARNING_RATES["sft"]) == 8


def test_best_validation_accuracy_of_the_method_wins_and_a_tie_goes_to_the_smaller_rate():
    results = [
        _result("sft", 1e-3, 0.5),
        _result("sft", 1e-5, 0.5),
        _result("sft", 1e-4, 0.4),
        _result("grpo", 1e-6, 0.9),
    ]
    assert choose(results, "sft").base_lr == 1e-5


@pytest.mark.slow
def test_methods_benchmark_resumes(tmp_path: Path):
    small = ["--quick", "--trials", "1", "--problems", "4", "--methods", "sft", "bridge"]
    arguments = [*small, "--out", str(tmp_path)]
    first = _run("methods.py", *arguments)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert len(written) == 5  # base, and a trial and a reported run of two methods
    assert "| `base` |" in first and "| `bridge` |" in first
    assert _run("methods.py", *arguments) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")} == written


@pytest.mark.slow
def test_probes_benchmark_prints_every_phase_and_compares_with_none():
    printed = _run("probes.py", "--steps", "1", "--warmup", "1", "--rounds", "1")
    for phase in ("rollouts", "gradients", "probes", "update", "total"):
        assert f"| {phase} |" in printed
    assert "| **total, against none** | 1.00 |" in printed


@pytest.mark.slow
def test_ghost_benchmark_compares_equal_numbers():
    printed = _run("probes.py", "--ghost", "4", "--rounds", "1")
    assert float(printed.split("Largest difference ")[1].split()[0]) < 1e-3


@pytest.mark.slow
def test_suspects_benchmark_runs_through(tmp_path: Path):
    small = "--seeds 1 --checkpoints 1 2 --aside-at 1 --steps 2".split()
    printed = _run("suspects.py", *small, "--out", str(tmp_path))
    assert "| **ledger score** | 2 |" in printed and "| flawed set aside |" in printed
