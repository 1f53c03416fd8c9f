"""Demonstrations set aside: not drawn from then on, through resume, rewind and fork."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.training.tiny import save_tiny_llama, small_config
from workbench import Session
from workbench.config import ConfigError, RunConfig
from workbench.worker import SessionError

ASIDE = ["demo-0000", "demo-0003"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Four of ten demonstrations a step; snapshots at step 0 and every third step."""
    return small_config(
        save_tiny_llama(tmp_path_factory.mktemp("tiny")),
        method="sft",
        demonstrations_per_step=4,
        n_demonstrations=10,
        n_prompts=4,
        n_validation=0,
        n_hard=0,
        snapshot_every=3,
    )


def drawn(session: Session, step: int) -> list[str]:
    """Ids of the demonstrations of one step."""
    frame = session.frame("demonstrations")
    return list(frame[frame["step"] == step]["demonstration_id"])


def numbers(session: Session) -> pd.DataFrame:
    """All that the run's live history measured, times apart."""
    metrics = session.frame("metrics")
    timed = [name for name in metrics if name.startswith(("seconds/", "snapshot/"))]
    losses = session.frame("demonstrations").drop(columns="step")
    return pd.concat([metrics.drop(columns=timed), losses], axis=1)


def steered(config: RunConfig, folder: Path) -> Session:
    """A run of 6 steps: two demonstrations set aside after step 1, one taken back after step 4."""
    session = Session(config, folder)
    session.run(1)
    session.set_aside(ASIDE)
    session.run(3)
    session.take_back(ASIDE[1:])
    session.run(2)
    return session


@pytest.fixture(scope="module")
def run(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Numbers of the uninterrupted `steered` run."""
    with steered(config, tmp_path_factory.mktemp("run") / "run") as session:
        return numbers(session)


def test_demonstrations_set_aside_are_not_drawn_and_the_others_keep_their_places(
    config: RunConfig, tmp_path: Path
) -> None:
    with Session(config, tmp_path / "plain") as plain, Session(config, tmp_path / "x") as session:
        plain.run(6)
        session.run(1)
        session.set_aside(iter(ASIDE))
        session.run(5)
        assert drawn(session, 1) == drawn(plain, 1)
        assert any(name in ASIDE for step in range(2, 7) for name in drawn(plain, step))
        for step in range(2, 7):
            for before, now in zip(drawn(plain, step), drawn(session, step), strict=True):
                assert now not in ASIDE
                assert now == before or before in ASIDE
        session.take_back(ASIDE)
        plain.run(2)
        session.run(2)
        assert drawn(session, 7) + drawn(session, 8) == drawn(plain, 7) + drawn(plain, 8)


def test_equal_seeds_and_commands_give_equal_numbers(
    config: RunConfig, run: pd.DataFrame, tmp_path: Path
) -> None:
    with steered(config, tmp_path / "again") as session:
        pd.testing.assert_frame_equal(numbers(session), run)


def test_a_resumed_run_keeps_aside_what_was(
    config: RunConfig, run: pd.DataFrame, tmp_path: Path
) -> None:
    with Session(config, tmp_path / "run") as session:
        session.run(1)
        session.set_aside(ASIDE)
    with Session.open(tmp_path / "run") as session:
        assert session.config.training.set_aside == tuple(ASIDE)
        session.run(3)
        session.take_back(ASIDE[1])  # a single id needs no list
    with Session.open(tmp_path / "run") as session:
        session.run(2)
        pd.testing.assert_frame_equal(numbers(session), run)


def test_rewind_replays_the_commands_up_to_its_step_and_no_later_ones(
    config: RunConfig, run: pd.DataFrame, tmp_path: Path
) -> None:
    with steered(config, tmp_path / "run") as session:
        session.rewind(5)  # from the snapshot of step 3, across take_back
        assert session.config.training.set_aside == (ASIDE[0],)
        session.run(1)
        pd.testing.assert_frame_equal(numbers(session), run)
        session.rewind(2)  # from the snapshot of step 0, across set_aside
        assert session.config.training.set_aside == tuple(ASIDE)
        session.run(2)  # nothing is taken back this time, and it is not needed until step 5
        session.take_back(ASIDE[1:])
        session.run(2)
        pd.testing.assert_frame_equal(numbers(session), run)
        session.rewind(0)
        assert session.config.training.set_aside == ()
        assert session.frame("findings").empty  # every step executed again gave its old numbers


def test_a_fork_starts_with_what_was_aside_at_its_step(config: RunConfig, tmp_path: Path) -> None:
    with steered(config, tmp_path / "run") as session:
        rest = drawn(session, 4)
        with session.fork(tmp_path / "fork", step=3) as fork:
            assert fork.config.training.set_aside == tuple(ASIDE)
            fork.run(1)
            assert drawn(fork, 4) == rest
            fork.rewind(3)
            assert fork.config.training.set_aside == tuple(ASIDE)
        with session.fork(tmp_path / "cleaner", step=3, set_aside=["demo-0001"]) as fork:
            assert fork.config.training.set_aside == ("demo-0001",)
        with session.fork(tmp_path / "other", step=3, task_seed=7) as fork:
            assert fork.config.training.set_aside == ()  # demo-0003 is another one there
        assert session.config.training.set_aside == (ASIDE[0],)


def test_a_config_may_set_demonstrations_aside_from_the_start(
    config: RunConfig, tmp_path: Path
) -> None:
    aside = config.with_changes(set_aside=ASIDE)
    with Session(aside, tmp_path / "run") as session:
        session.run(5)
        assert not set(ASIDE) & set(session.frame("demonstrations")["demonstration_id"])
    with pytest.raises(ConfigError, match="set_aside: no such demonstration: demo-9"):
        Session(config.with_changes(set_aside=["demo-9"]), tmp_path / "unknown")
    assert not (tmp_path / "unknown").exists()


def test_errors_name_what_is_wrong_and_change_nothing(config: RunConfig, tmp_path: Path) -> None:
    with Session(config, tmp_path / "run") as session:
        with pytest.raises(ConfigError, match="set_aside: no such demonstration: nobody, nothing$"):
            session.set_aside(["demo-0001", "nothing", "nobody"])
        with pytest.raises(ConfigError, match="take_back: no such demonstration: nobody$"):
            session.take_back("nobody")
        session.set_aside(f"demo-{n:04d}" for n in range(9))
        with pytest.raises(ConfigError, match="would leave no demonstration"):
            session.set_aside("demo-0009")
        with pytest.raises(ConfigError, match="no such demonstration: demo-77"):
            session.fork(tmp_path / "fork", set_aside=["demo-77"])
        assert not (tmp_path / "fork").exists()
        assert len(session.config.training.set_aside) == 9
        commands = session.frame("commands")
        done = commands[commands["outcome"] == "done"]
        assert list(done["name"]) == ["set_aside"] and len(commands) == 5
    with Session(config.with_changes(method="grpo"), tmp_path / "grpo") as session:
        with pytest.raises(ConfigError, match="method 'grpo' draws no demonstrations"):
            session.set_aside("demo-0001")


def test_the_suspects_are_exported_and_can_be_set_aside(config: RunConfig, tmp_path: Path) -> None:
    bridge = config.with_changes(
        method="bridge", alignment_every=1, reward_flip=0.5, max_new_tokens=3
    )
    with Session(bridge, tmp_path / "run") as session:
        with pytest.raises(SessionError, match="say how many"):
            session.export_suspects(tmp_path / "suspects.jsonl")
        session.run(3)
        found = session.ledger()
        assert session.export_suspects(tmp_path / "suspects.jsonl", n=2) == 2
        text = (tmp_path / "suspects.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines()]
        expected = found[:2].rename(columns={"demonstration_id": "id"})
        known = [name for name in lines[0] if name != "disagreement"]
        assert known == ["id", "prompt", "solution", "score", "visits", "rank"]
        assert [{name: line[name] for name in known} for line in lines] == expected[known].to_dict(
            "records"
        )
        assert [line["disagreement"] for line in lines] == [None, None]  # was not asked for
        assert session.export_suspects(tmp_path / "all.jsonl", threshold=-1) == len(found)
        with pytest.raises(SessionError, match="cannot write .*nowhere"):
            session.export_suspects(tmp_path / "nowhere" / "suspects.jsonl", n=2)
        session.set_aside(line["id"] for line in lines)
        session.run(2)
        after = session.ledger().set_index("demonstration_id")
        assert (after.loc[[line["id"] for line in lines], "last_step"] <= 3).all()
