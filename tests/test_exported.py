"""What a run leaves is read by transformers and peft alone, where this project is not."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from tests.training.tiny import save_tiny_llama
from workbench.config import RunConfig
from workbench.session import Session

IDS = [[1, 4, 7, 2, 9, 3]]

ALONE = """
import json, sys
sys.modules["workbench"] = None  # importing it fails from here on
export, snapshot, model, out = sys.argv[1:]
import numpy as np, torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
ids = torch.tensor(json.load(sys.stdin))
with torch.no_grad():
    whole = AutoModelForCausalLM.from_pretrained(export).eval()(ids).logits
    AutoTokenizer.from_pretrained(export)
    base = AutoModelForCausalLM.from_pretrained(model).eval()
    theta = load_file(f"{snapshot}/base/model.safetensors")
    missing, unexpected = base.load_state_dict(theta, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    off = base(ids).logits
    parts = PeftModel.from_pretrained(base, f"{snapshot}/coordinator").eval()(ids).logits
np.savez(out, whole=whole.numpy(), off=off.numpy(), parts=parts.numpy())
"""


def test_the_export_and_the_adapter_alone_give_the_runs_logits(tmp_path: Path) -> None:
    model = save_tiny_llama(tmp_path / "model")
    config = RunConfig().with_changes(
        path=str(model), device="cpu", base_lr=1e-2, coordinator_lr=1e-1, n_prompts=4,
        n_demonstrations=4, prompts_per_step=2, group_size=2, demonstrations_per_step=2,
        max_new_tokens=2, paired_gain_every=0, evaluate_every=0, snapshot_every=1,
    )  # fmt: skip
    with Session(config, tmp_path / "run") as s:
        s.run(steps=2)
        s.export(tmp_path / "out")
        policy = s._worker.engine.policy
        with torch.no_grad():
            joint = policy.of("joint")(input_ids=torch.tensor(IDS)).logits
            with policy.coordinator_scale(0.0):
                off = policy.of("joint")(input_ids=torch.tensor(IDS)).logits
    assert not torch.allclose(joint, off, atol=1e-2)  # w has moved
    folders = [tmp_path / "out", tmp_path / "run/snapshots/step-000002", model]
    found = tmp_path / "found.npz"
    subprocess.run(
        [sys.executable, "-c", ALONE, *map(str, folders), str(found)],
        input=json.dumps(IDS), text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    with np.load(found) as alone:
        for name, expected in (("whole", joint), ("parts", joint), ("off", off)):
            np.testing.assert_allclose(alone[name], expected, atol=1e-5, err_msg=name)
