"""Records and snapshots with something in every field."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
import pytest

from workbench.config import RunConfig
from workbench.records import (
    AlignmentRow,
    CoordinatorRow,
    DemonstrationRow,
    GainRow,
    RolloutRow,
    StepRecord,
)
from workbench.store import Snapshot

NAN = float("nan")


def _rollout(step: int, sequence: int, draw: Random) -> RolloutRow:
    length = draw.randint(1, 5)

    def per_token() -> list[float]:
        return [draw.gauss(-1, 1) for _ in range(length)]

    return RolloutRow(
        step=step,
        purpose="train",
        policy="joint",
        sequence=sequence,
        prompt_id=f"p{sequence}",
        prompt='1+2=?\n<img src=x onerror="alert(1)">',
        completion="drei ³ 三\0🙂",
        answer="3",
        extracted="",
        reward=1.0,
        correct=0.0,
        advantage=NAN if sequence == 0 else draw.random(),
        finished=sequence == 0,
        token_ids=[draw.randrange(100) for _ in range(length)],
        tokens=["🙂"] * length,
        sampling_logprob=per_token(),
        logprob=per_token(),
        entropy=[NAN] * length,
        rl_alignment=draw.gauss(0, 1),
        rl_cosine=draw.random(),
        sft_alignment=draw.gauss(0, 1),
        grad_norm=NAN if sequence == 0 else draw.random(),
    )


def _record(step: int, value: float = 0.0, rollouts: int = 2) -> StepRecord:
    draw = Random(f"{step} {value}")
    metrics = {"reward": value, "kl": draw.random(), "gain/paired": NAN}
    if step % 2 == 0:
        metrics["eval/accuracy"] = 1 / 3
    return StepRecord(
        step=step,
        metrics=metrics,
        rollouts=[_rollout(step, i, draw) for i in range(rollouts)],
        gain=[GainRow(step, "shared", "p0", "1+2=?", 0.5, NAN, NAN, NAN, 1.2, 8)],
        demonstrations=[
            DemonstrationRow(step, f"d{i}", "1+2=?", "3", "clean", 0.1, 4, 1e-300, NAN, 2.0, -0.5)
            for i in range(2)
        ],
        alignment=[AlignmentRow(step, "base", "all", -0.25, 0.1, True, 1.0, 2.0, 3.0)],
        coordinator=[
            CoordinatorRow(step, "layers.0", "q", 0.1, 1.0, 0.1, [draw.random(), NAN], 1.5)
        ],
    )


def _snapshot(step: int, value: float = 0.0) -> Snapshot:
    array = np.full((2, 3), value, dtype=np.float32)
    return Snapshot(
        step=step,
        tensors={
            "base/model.safetensors": {"w": array, "transposed": array.T},
            "optimizers.safetensors": {"moments": array[0], "updates": np.array(step)},
            "empty.safetensors": {},
        },
        texts={"coordinator/adapter_config.json": '{"r": 16}', "note.txt": "größer\n"},
        state={"step": step, "loss": value, "names": ["a", "b"]},
    )


@pytest.fixture(autouse=True)
def without_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed: a kill, unlike a power cut, loses nothing that was not flushed. See test_durable."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture(scope="session")
def record() -> Callable[..., StepRecord]:
    """record(step, value=0.0, rollouts=2): `value` is its metric `reward`."""
    return _record


@pytest.fixture(scope="session")
def snapshot() -> Callable[..., Snapshot]:
    """snapshot(step, value=0.0): `value` is in every tensor."""
    return _snapshot


@pytest.fixture(scope="session")
def config() -> RunConfig:
    """Keeps few snapshots: step 0, the newest two, multiples of 10."""
    return RunConfig().with_changes(keep_last=2, keep_every=10)
