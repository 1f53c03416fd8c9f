"""The benchmark scripts run, go on where they stopped, and choose what they say they choose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
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


@pytest.mark.parametrize(
    ("grows_by", "flat"),
    [
        ({}, True),
        ({"memory": 0.9}, True),  # MB, or a number, in 1,000 steps
        ({"memory": 1.1}, False),
        ({"memory": -5.0}, True),
        ({"threads": 1.1}, False),
        ({"handles": 1.1}, False),
    ],
)
def test_the_soak_tells_what_grows(grows_by: dict[str, float], flat: bool):
    """Samples that wobble around a line; and, where they wobble more than it rises, no verdict."""
    from benchmarks.soak import table

    steps = np.arange(0.0, 4000.0, 2.0)
    wobble = np.random.default_rng(0).normal(size=(3, len(steps)))
    frame = pd.DataFrame({"step": steps, "seconds": steps})
    for name, noise in zip(("memory", "threads", "handles"), wobble, strict=True):
        frame[name] = 600 + 0.01 * noise + grows_by.get(name, 0.0) / 1000 * steps
    text, found = table(frame, 4000, 0.25)
    assert found is flat
    assert ("Nothing grows." in text) is flat and ("**Something grows.**" in text) is not flat
    for name, rate in grows_by.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {name}")]
        assert f"| {rate:+.2f} ± 0.0" in line
    frame["memory"] += 100 * wobble[0]
    assert table(frame, 4000, 0.25)[1] is (flat or "memory" in grows_by)


def test_the_gpu_benchmark_counts_what_a_step_took(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Here on the CPU, with a model of the kind that is small."""
    from benchmarks import gpu

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    shape = {**gpu.QWEN_1_5B, **small, "num_attention_heads": 4, "vocab_size": 1000}
    fewer = {**gpu.FEWER, "prompts_per_step": 2, "group_size": 2, "max_new_tokens": 8}
    monkeypatch.setitem(gpu.CASES, "small", gpu.Case("qwen2.5-3b", "bridge", fewer, shape))
    monkeypatch.setattr(gpu, "in_process", lambda work, *arguments: work(*arguments))
    out = tmp_path / "out.json"
    arguments = ["gpu.py", "small", "--device", "cpu", "--steps", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    gpu.main()
    (found,) = json.loads(out.read_text())
    assert found["tokens"] == 2 * 2 * 8  # random weights do not end early
    assert list(found["seconds"]) == list(gpu.PHASES) and min(found["seconds"].values()) > 0
    assert found["cpu_bytes"] > found["cpu_planned"] > 0
    said = capsys.readouterr().out
    assert "rollouts  rewards  gradients  probes  update  step 2: " in said
    assert "| `small` |" in said


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
