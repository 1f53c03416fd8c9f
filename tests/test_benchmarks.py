"""The benchmark scripts run, go on where they stopped, and choose what they say they choose."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


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


@pytest.mark.slow
def test_methods_benchmark_resumes(tmp_path: Path):
    small = ["--quick", "--trials", "1", "--problems", "4", "--methods", "sft", "bridge"]
    arguments = [*small, "--out", str(tmp_path)]
    first = _run("methods.py", *arguments)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/outcome.json")}
    assert len(written) == 4  # a trial and a reported run of two methods
    assert "| `sft` |" in first and "| `bridge` |" in first
    assert _run("methods.py", *arguments) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/outcome.json")} == written


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
    assert "| **contradicted** | 2 |" in printed
    assert "| **ledger score** | 2 |" in printed and "| flawed set aside |" in printed


@pytest.mark.slow
def test_coverage_prints_the_toys_and_the_runs_tables():
    printed = _run("coverage.py", "--repetitions", "3", "--steps", "10", "--rollouts", "2")
    assert "| prompt, interval |" in printed and "| shared batch, 1.96 se |" in printed
    assert "| **Agresti–Min** (reported) |" in printed and "| 32 | 0.005 |" in printed
    assert "| all but blanked |" in printed


@pytest.mark.slow
def test_noise_benchmark_resumes(tmp_path: Path):
    arguments = ["--quick", "--flips", "0", "0.4", "--out", str(tmp_path)]
    first = _run("noise.py", *arguments)
    assert "| `bridge` | 0.4 |" in first and "| `sft` | 0.4 |" in first
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert len(written) == 6  # sft sees no reward and is run once; and the start
    assert _run("noise.py", *arguments) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")} == written
