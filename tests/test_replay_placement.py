"""A step executed again is the same to the last bit, however and wherever it is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training.tiny import save_tiny_llama, small_config
from workbench import Session

EVERYTHING_WAITS = ["reference", "baseline", "base", "gradients", "gradient_sum"]
SETTINGS: dict[str, dict[str, Any]] = {
    "checkpointing": {"gradient_checkpointing": True},
    "bf16": {"compute_dtype": "bfloat16", "reference_dtype": "bfloat16"},
    "offload": {"offload": EVERYTHING_WAITS},
    "small micro-batches": {"micro_batch_tokens": 24},
    "all of them": {
        "gradient_checkpointing": True,
        "compute_dtype": "bfloat16",
        "reference_dtype": "bfloat16",
        "offload": EVERYTHING_WAITS,
        "micro_batch_tokens": 24,
    },
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_replay_is_bit_identical(name: str, model: Path, tmp_path: Path) -> None:
    config = small_config(
        model, snapshot_every=2, alignment_every=1, n_demonstrations=8, n_prompts=8
    ).with_changes(**SETTINGS[name])
    with Session(config, tmp_path / "run") as session:
        session.run(2)
    with Session.resume(tmp_path / "run") as session:
        replayed = session.replay(2)  # from the model, by way of step 1
        assert replayed.identical, replayed.differences
        assert "weights and optimizers of snapshot 2" in replayed.compared
        assert not session.replay(2, base_lr=2e-3).identical  # the comparison can fail
