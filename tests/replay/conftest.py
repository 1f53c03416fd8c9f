"""A run with changes on its way, one with a snapshot at each step, and replays of both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.tiny import save_tiny_llama, small_config
from workbench import Session
from workbench.config import RunConfig
from workbench.replay import Replay


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def config(model: Path) -> RunConfig:
    return small_config(
        model,
        snapshot_every=4,
        terms=(3,),
        n_prompts=12,
        n_validation=3,
        n_hard=0,
        n_demonstrations=8,
        reward_flip=0.4,  # an untrained model earns nothing else, and would not move
        paired_gain_every=2,
        paired_prompts=2,
        paired_rollouts=2,
        coordinator_every=2,
        evaluate_every=3,
        evaluation_max_new_tokens=4,
        shared_gain_every=1,
    )


@pytest.fixture(scope="session")
def s(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """Six steps, λ changed after the second, a demonstration set aside after the third."""
    with Session(config, tmp_path_factory.mktemp("run") / "run") as session:
        session.run(2)
        session.set(rl_weight=0.7)
        session.run(1)
        session.set_aside("demo-0003")
        session.run(3)
        yield session


@pytest.fixture(scope="session")
def every_step(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """Four steps as configured, each with a snapshot. To look at only."""
    kept = config.with_changes(snapshot_every=1, keep_last=9)
    with Session(kept, tmp_path_factory.mktemp("every_step") / "run") as session:
        session.run(4)
        yield session


@pytest.fixture(scope="session")
def traced(s: Session) -> Replay:
    """Step 5: the first after the snapshot of step 4."""
    return s.replay(5, trace=True)


@pytest.fixture(scope="session")
def traced_3(every_step: Session) -> Replay:
    """Its step 3."""
    return every_step.replay(3, trace=True)
