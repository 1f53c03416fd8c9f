"""What another setting, method or baseline would have made of a step."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from workbench import Session
from workbench.config import RunConfig
from workbench.replay import Replay


@pytest.mark.parametrize(
    "changes",
    [
        {"rl_weight": 0.9},
        {"base_lr": 1e-2, "group_size": 4},
        {"reward_flip": 0.0, "seed": 3},
        {"method": "grpo"},
        {"baseline_mode": "reset"},
        {"task_seed": 5},
    ],
    ids=lambda changes: ", ".join(changes),
)
def test_what_if_is_what_a_fork_would_do(
    s: Session, at_5: dict[str, np.ndarray], tmp_path: Path, changes: dict
) -> None:
    found = s.replay(6, trace=True, **changes)
    with s.fork(tmp_path / "fork", step=5, **changes) as fork:
        made = fork.step()
        weights = fork._worker.engine.snapshot().tensors
    assert found.record is not None
    compared = [name for name in made.metrics if not name.startswith("seconds/")]
    for name in compared:
        a, b = found.record.metrics[name], made.metrics[name]
        assert a == b or math.isnan(a) and math.isnan(b), name
    assert len(compared) > 10
    assert found.changes == changes
    assert found.identical is False
    size = math.sqrt(
        sum(
            float(((b - a).astype(np.float64) ** 2).sum())
            for a, b in (
                (array, weights["base/model.safetensors"][name]) for name, array in at_5.items()
            )
        )
    )
    moved = found.updates.set_index(["part", "layer"]).loc[("base", "all"), "update_norm"]
    assert moved == pytest.approx(size, rel=1e-9)


@pytest.fixture(scope="module")
def at_5(s: Session) -> dict[str, np.ndarray]:
    """θ at the end of step 5, by a rewind of a copy of the run."""
    engine = s._worker.engine.scratch()
    engine.travel(5, lambda *_: None)
    return engine.policy.base_arrays("base")


def test_a_method_with_a_baseline_can_be_asked_of_a_run_without(
    config: RunConfig, tmp_path: Path
) -> None:
    with Session(config.with_changes(method="sft", snapshot_every=2), tmp_path / "run") as s:
        s.run(3)
        plain = s.replay(3, trace=True)
        assert plain.identical is True
        assert set(plain.layers["passing"]) == {"sft"}
        assert plain.tokens["kl_reference"].isna().all() and (plain.tokens["kl_update"] >= 0).all()
        found = s.replay(3, trace=True, method="bridge")
        with s.fork(tmp_path / "fork", step=2, method="bridge") as fork:
            made = fork.step()
        assert found.record is not None
        for name in ("reward", "grad_norm", "baseline/grad_norm", "coordinator/grad_norm"):
            assert found.record.metrics[name] == made.metrics[name]


def test_what_another_method_or_a_tracked_baseline_would_have_done(
    s: Session, traced: Replay
) -> None:
    tracked = s.replay(5, trace=True, method="luffy", track_baseline=True)
    assert tracked.record is not None and tracked.record.metrics["baseline/grad_norm"] > 0
    assert "kl_update" in tracked.tokens  # luffy's objective is not GRPO's: no term is written out
    assert not any(name.endswith("_push") for name in tracked.tokens)
    assert "rl_push" in traced.tokens
