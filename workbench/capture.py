"""A run's state as the files of a snapshot, and back: weights, optimizers, step and config."""

from __future__ import annotations

import json

import numpy as np

from workbench.config import RunConfig
from workbench.policy import Policy
from workbench.store import Snapshot
from workbench.training.trainer import Trainer

BASE = "base/model.safetensors"
BASELINE = "baseline/model.safetensors"
COORDINATOR = "coordinator/adapter_model.safetensors"
OPTIMIZERS = "optimizers"
"""How the files with optimizer states begin: one for each part, so that a still one is shared."""


def capture(policy: Policy, trainer: Trainer, step: int, config: RunConfig) -> Snapshot:
    """The whole state after a step, as arrays and text. The arrays are copies."""
    adapter, adapter_config = policy.adapter_files()
    tensors: dict[str, dict[str, np.ndarray]] = {
        BASE: policy.base_arrays("base"),
        COORDINATOR: adapter,
    }
    for name, array in trainer.optimizer_arrays().items():
        file = f"{OPTIMIZERS}/{name.split('/')[0]}.safetensors"
        tensors.setdefault(file, {})[name] = array
    model_config = policy.model_config.to_json_string(use_diff=False)
    texts = {
        "base/config.json": model_config,
        "coordinator/adapter_config.json": json.dumps(adapter_config, indent=2, default=str),
    }
    if policy.baseline is not None:
        tensors[BASELINE] = policy.base_arrays("baseline")
        texts["baseline/config.json"] = model_config
    state = {"step": step, "config": config.model_dump(mode="json")}
    return Snapshot(step, tensors, texts, state)


def load_weights(policy: Policy, snapshot: Snapshot) -> None:
    """Give a policy the θ, θ̂ and w of a snapshot."""
    base = snapshot.tensors[BASE]
    policy.load_arrays(
        base,
        # a run forked from a method without θ̂ starts it as a copy of θ
        snapshot.tensors.get(BASELINE, base) if policy.baseline is not None else {},
        snapshot.tensors[COORDINATOR],
    )


def load_optimizers(trainer: Trainer, snapshot: Snapshot) -> None:
    """Give a trainer the optimizer states of a snapshot; earlier workbenches had them in one."""
    files = [arrays for name, arrays in snapshot.tensors.items() if name.startswith(OPTIMIZERS)]
    trainer.load_optimizer_arrays({name: a for arrays in files for name, a in arrays.items()})
