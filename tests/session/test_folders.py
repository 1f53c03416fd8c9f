"""The run's folder, its snapshots and exports."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.training.tiny import disturb
from workbench.config import ConfigError, RunConfig
from workbench.session import Session
from workbench.store import RunFolderError


def test_a_folder_that_holds_a_run_is_not_overwritten(s: Session, config: RunConfig) -> None:
    with pytest.raises(RunFolderError, match=r"Session\.resume"):
        Session(config, s.run_dir)
    with pytest.raises(RunFolderError, match="in use by process"):
        Session.resume(s.run_dir)
    assert s.step().step == 1


def test_a_run_that_cannot_begin_leaves_its_folder_free(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no"):
        Session(config.with_changes(path="./nowhere"), tmp_path / "run")
    Session(config, tmp_path / "run").close()
    with pytest.raises(RunFolderError, match="no run at"):
        Session.resume(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_export_and_snapshot_are_the_joint_policy(s: Session, tmp_path: Path) -> None:
    disturb(s._worker.engine.policy.coordinator, 0.2, seed=1)
    s.run(1)
    ids = torch.tensor([[1, 40, 41, 50]])

    @torch.no_grad()
    def logits(model: torch.nn.Module) -> torch.Tensor:
        return model(input_ids=ids).logits

    joint = logits(s._worker.engine.policy.model)
    s.export(tmp_path / "exported")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    assert torch.allclose(logits(plain), joint, atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert tokenizer.encode("1\n") == s._worker.engine.policy.encode_prompt("1")
    folder = s.save()
    theta = AutoModelForCausalLM.from_pretrained(folder / "base")
    assert not torch.allclose(logits(theta), joint, atol=1e-4)
    loaded = PeftModel.from_pretrained(theta, str(folder / "coordinator"))
    assert torch.allclose(logits(loaded), joint, atol=1e-4)


def test_a_snapshot_is_plain_json_and_safetensors(s: Session) -> None:
    s.run(2)
    folder = s.run_dir / "snapshots" / "step-000002"
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert names >= {
        "base/model.safetensors",
        "baseline/model.safetensors",
        "coordinator/adapter_model.safetensors",
        "coordinator/adapter_config.json",
        "state.json",
    }
    assert json.loads((folder / "state.json").read_text())["step"] == 2
    assert os.path.commonpath([folder, s.run_dir]) == str(s.run_dir)


def test_what_is_shown_is_escaped(config: RunConfig, tmp_path: Path) -> None:
    with Session(config, tmp_path / "<img src=x onerror=alert(1)>") as s:
        s.run(1)
        assert "<img" not in s._repr_html_()
        assert "step 1" in repr(s)
