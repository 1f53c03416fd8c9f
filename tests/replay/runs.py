"""What the tests of replays compare with."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from safetensors.numpy import load_file
from transformers import LlamaForCausalLM

from workbench import Session

STEPS = 6


def numbers(s: Session) -> pd.DataFrame:
    frame = s.frame("metrics")
    return frame[[name for name in frame if not name.startswith(("seconds/", "snapshot/"))]]


def plain_model(s: Session, model: Path, step: int) -> LlamaForCausalLM:
    """A plain Llama in float64 with the effective weights W_θ + (alpha/r)·B·A of a snapshot."""
    folder = s.run_dir / "snapshots" / f"step-{step:06d}"
    plain = LlamaForCausalLM.from_pretrained(model).double().eval()
    base = load_file(folder / "base" / "model.safetensors")
    adapter = load_file(folder / "coordinator" / "adapter_model.safetensors")
    scale = s.config.model.lora_alpha / s.config.model.lora_rank
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(torch.from_numpy(base[name]))
            key = "base_model.model." + name.removesuffix(".weight")
            if f"{key}.lora_A.weight" in adapter:
                a = torch.from_numpy(adapter[f"{key}.lora_A.weight"]).double()
                b = torch.from_numpy(adapter[f"{key}.lora_B.weight"]).double()
                parameter += scale * (b @ a)
    return plain
