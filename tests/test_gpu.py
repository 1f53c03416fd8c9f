"""A step on a GPU is the CPU's: the same rollouts, the same numbers, the same weights.

Needs a CUDA device. All other tests run on it too where there is one, for `device` is 'auto'.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.training.tiny import (
    float64_everywhere,
    numbers,
    save_tiny_llama,
    small_config,
    two_steps,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
MEASURED = {"alignment_every": 1, "rollout_alignment_every": 1, "token_views_every": 1}
METHODS = ["bridge", "grpo", "sft", "naive_mix", "alternating"]


@pytest.mark.parametrize("method", METHODS)
def test_two_steps_are_those_of_the_cpu(method: str, tmp_path: Path) -> None:
    """In float64, where nothing but an error could make a difference of a millionth.

    AdamW makes a step of a gradient near zero too, hence a thousandth of a step's size for weights.
    """
    model = save_tiny_llama(tmp_path)
    config = small_config(model, method=method, **MEASURED)
    with float64_everywhere():
        here, expected = two_steps(config.with_changes(device="cpu"), double=True)
        there, found = two_steps(config.with_changes(device="cuda"), double=True)
    for a, b in zip(found, expected, strict=True):
        assert [row.token_ids for row in a.rollouts] == [row.token_ids for row in b.rollouts]
        assert numbers(a) == pytest.approx(numbers(b), rel=1e-6, abs=1e-9, nan_ok=True)
    step = config.training.base_lr
    for parts in ("base", "baseline_base", "coordinator"):
        for name, parameter in getattr(there, parts).items():
            assert parameter.device.type == "cuda"
            wanted = getattr(here, parts)[name]
            torch.testing.assert_close(parameter.cpu(), wanted, rtol=1e-6, atol=1e-3 * step)
