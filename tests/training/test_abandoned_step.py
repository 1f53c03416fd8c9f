"""A step that is left before its update leaves θ, θ̂, w and the optimizers as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.training.tiny import (
    ChanceTask,
    copy_of,
    disturb,
    make_policy,
    same_bits,
    save_tiny_llama,
    small_config,
)
from workbench.training.trainer import Trainer


@pytest.mark.parametrize("mode", ["persistent", "reset"])
@pytest.mark.parametrize("phase", ["gradients", "probes", "update"])
def test_a_step_abandoned_before_a_phase_moves_nothing(
    tmp_path: Path, mode: str, phase: str
) -> None:
    config = small_config(save_tiny_llama(tmp_path), baseline_mode=mode)
    policy = make_policy(config)
    disturb(policy.coordinator, 0.2, seed=1)
    trainer = Trainer(config, policy, ChanceTask())
    trainer.step(1)  # the optimizers hold something
    parts = (policy.base, policy.baseline_base, policy.coordinator)
    before = [copy_of(part) for part in parts]
    optimizers = trainer.optimizer_arrays()

    def leave(name: str) -> None:
        if name == phase:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        trainer.step(2, leave)
    assert all(same_bits(dict(part), b) for part, b in zip(parts, before, strict=True))
    after = trainer.optimizer_arrays()
    assert after.keys() == optimizers.keys()
    assert all(np.array_equal(after[name], optimizers[name]) for name in after)
    trainer.step(2)
    assert not same_bits(dict(policy.baseline_base), before[1])
