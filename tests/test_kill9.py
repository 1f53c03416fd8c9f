"""Five of the kills of benchmarks/kill9.py, which makes a hundred."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_five_kills_lose_at_most_the_step_in_flight(tmp_path: Path) -> None:
    command = ["benchmarks/kill9.py", "--kills", "5", "--steps", "4", "--seed", "3"]
    done = subprocess.run(
        [sys.executable, *command, "--out", str(tmp_path / "kill9.md")],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 kills at random moments" in (tmp_path / "kill9.md").read_text()
