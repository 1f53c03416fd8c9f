"""A fork goes on like its trunk, or with its own settings, and leaves the trunk alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.session.runs import STEPS, History, assert_same_numbers, weights
from tests.training.tiny import copy_of, same_bits
from workbench.config import ConfigError, RunConfig
from workbench.session import Session
from workbench.store import RunFolderError


def test_a_fork_without_changes_goes_on_like_its_trunk(
    s: Session, history: History, tmp_path: Path
) -> None:
    s.run(4)
    with s.fork(tmp_path / "fork", step=3) as fork:
        assert fork.step_number == 3
        assert same_bits(weights(fork), history.weights[3])
        fork.run(STEPS - 3)
        assert_same_numbers(fork, history.numbers)
    assert s.step_number == 4
    assert same_bits(weights(s), history.weights[4])
    s.run(STEPS - 4)
    assert_same_numbers(s, history.numbers)


def base(s: Session) -> dict[str, torch.Tensor]:
    return s._worker.engine.policy.base


def test_a_fork_with_changes_leaves_its_trunk_alone(
    s: Session, history: History, tmp_path: Path
) -> None:
    s.run(2)
    with s.fork(tmp_path / "fork", base_lr=5e-4, method="grpo", group_size=2) as fork:
        assert (fork.config.get("base_lr"), fork.config.method) == (5e-4, "grpo")
        assert same_bits(copy_of(fork._worker.engine.policy.base), copy_of(base(s)))
        record = fork.step()
        assert record.metrics["base_lr"] == 5e-4
        assert len(record.rollouts) == 4
        assert list(fork.frame("metrics")["base_lr"]) == [1e-3, 1e-3, 5e-4]
    assert (s.config.get("base_lr"), s.config.method) == (1e-3, "bridge")
    s.run(STEPS - 2)
    assert_same_numbers(s, history.numbers)


def test_a_fork_keeps_its_own_settings_however_far_it_goes(
    config: RunConfig, tmp_path: Path
) -> None:
    """Its first snapshot is where they begin: without it a rewind would go by the trunk's."""
    with Session(config, tmp_path / "trunk") as trunk:
        trunk.run(1)
        with trunk.fork(tmp_path / "fork", base_lr=5e-4) as fork:
            fork.step()
            at_2 = weights(fork)
            fork.run(6)
            fork.rewind(2)
            assert fork.config.get("base_lr") == 5e-4
            assert same_bits(weights(fork), at_2)
            assert "reexecution" not in set(fork.frame("findings")["detector"])
            with pytest.raises(RunFolderError, match="step 0"):
                fork.rewind(0)


def test_a_fork_of_changed_settings_starts_from_those(s: Session, tmp_path: Path) -> None:
    s.run(1)
    s.set(base_lr=7e-4)
    s.run(1)
    with s.fork(tmp_path / "late", step=2, coordinator_lr=3e-3) as fork:
        assert (fork.config.get("base_lr"), fork.config.get("coordinator_lr")) == (7e-4, 3e-3)
    with s.fork(tmp_path / "early", step=0) as fork:
        assert fork.config.get("base_lr") == 1e-3
    with Session.resume(tmp_path / "late") as again:
        assert (again.config.get("base_lr"), again.config.get("coordinator_lr")) == (7e-4, 3e-3)


def test_a_fork_that_cannot_be_leaves_no_folder(s: Session, tmp_path: Path) -> None:
    s.run(1)
    for changes, error in (
        ({"bass_lr": 1.0}, "did you mean 'base_lr'"),
        ({"base_lr": -1.0}, "base_lr"),
        ({"lora_rank": 4}, "lora_rank"),
        ({"kind": "dataset"}, "task.data: "),
        ({"gym_name": "chain_sum"}, "kind 'gym' has it"),
    ):
        with pytest.raises(ConfigError, match=error):
            s.fork(tmp_path / "fork", **changes)
    with pytest.raises(RunFolderError, match="step 5"):
        s.fork(tmp_path / "fork", step=5)
    assert not (tmp_path / "fork").exists()
    with pytest.raises(RunFolderError, match="exists already"):
        s.fork(s.run_dir)
    assert s.step().step == 2
