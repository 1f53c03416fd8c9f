"""app.py's flags: what a person gets wrong is said in one line, before a model is loaded."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

import app
from workbench.config import RunConfig
from workbench.store import RunStore


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]):
    """Run app.py with flags it must refuse; returns the one line it said."""

    def run(*flags: str) -> str:
        try:
            code = app.main(flags)
        except SystemExit as stop:
            code = stop.code
        assert code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--host", "0.0.0.0"], "--auth USER:PASS"),
        (["--auth", "nobody"], "want USER:PASS"),
        (["--port", "many"], "--port"),
        (["--preset", "pocke"], "no preset 'pocke'"),
        (["--config", "missing.toml"], "cannot read missing.toml"),
        (["--preset", "pocket", "--config", "x.toml"], "not allowed with"),
        (["--method", "gripo"], "no method 'gripo'; did you mean 'grpo'?"),
        (["--set", "rl_wait=1"], "did you mean 'rl_weight'?"),
        (["--read-only"], "say with --run DIR"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    refused, flags: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(*flags)
    assert list(tmp_path.iterdir()) == []


def test_a_busy_port_is_told_in_one_line(refused) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "is in use" in refused("--port", str(taken.getsockname()[1]))


def test_an_existing_run_keeps_its_settings(refused, tmp_path: Path) -> None:
    RunStore.create(tmp_path / "run", RunConfig()).close()
    said = refused("--run", str(tmp_path / "run"), "--preset", "pocket", "--set", "seed=1")
    assert "keeps its own settings: leave out --preset, --set" in said
