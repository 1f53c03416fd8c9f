"""What the README shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from workbench import RunConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _block(language: str) -> str:
    [block] = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return block


def test_links_point_at_files():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_the_toml_example_is_a_config(tmp_path: Path):
    path = tmp_path / "run.toml"
    path.write_text(_block("toml"), encoding="utf-8")
    config = RunConfig.load(path)
    assert (config.method, config.get("prompt_column")) == ("bridge", "question")


@pytest.mark.slow
def test_the_session_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    small = 'preset("pocket", prompts_per_step=2, group_size=2, paired_prompts=2, '
    code = _block("python")
    assert 'preset("pocket", ' in code
    names: dict[str, object] = {}
    exec(code.replace('preset("pocket", ', small), names)  # the README's own text
    assert (names["s"].step_number, names["half"].step_number) == (12, 12)
    names["half"].close()
    names["s"].close()
    assert (tmp_path / "runs/demo/export/model.safetensors").is_file()
