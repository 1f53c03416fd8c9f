"""A run of a tiny model, and its uninterrupted history."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.session.runs import History
from tests.training.tiny import save_tiny_llama
from workbench.config import RunConfig
from workbench.session import Session


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    model = save_tiny_llama(tmp_path_factory.mktemp("tiny"))
    return RunConfig().with_changes(
        path=str(model),
        device="cpu",
        lora_rank=2,
        terms=(3,),
        n_prompts=12,
        n_validation=3,
        n_hard=0,
        n_demonstrations=8,
        base_lr=1e-3,
        coordinator_lr=1e-2,
        prompts_per_step=2,
        group_size=4,
        demonstrations_per_step=2,
        reward_flip=0.4,  # an untrained model earns nothing else
        max_new_tokens=5,
        paired_gain_every=3,
        paired_prompts=2,
        paired_rollouts=2,
        coordinator_every=2,
        evaluate_every=0,
        evaluation_max_new_tokens=5,
        snapshot_every=2,
        keep_last=2,
        keep_every=0,
    )


@pytest.fixture(scope="session")
def history(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> History:
    return History(config, tmp_path_factory.mktemp("history") / "run")


@pytest.fixture
def s(config: RunConfig, tmp_path: Path) -> Iterator[Session]:
    with Session(config, tmp_path / "run") as session:
        yield session
