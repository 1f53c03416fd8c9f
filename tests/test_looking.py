"""Looks of a Session: what they answer, and that the run goes on as if nobody had looked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.training.tiny import save_tiny_llama, small_config
from workbench import Session
from workbench.config import RunConfig
from workbench.records import StepRecord
from workbench.worker import SessionError


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = save_tiny_llama(tmp_path_factory.mktemp("tiny"))
    return small_config(folder, snapshot_every=1)


@pytest.fixture(scope="module")
def session(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """Two steps old; only looked at."""
    with Session(config, tmp_path_factory.mktemp("run") / "run") as session:
        session.step()
        session.step()
        yield session


@pytest.fixture(scope="module")
def undisturbed(session: Session) -> StepRecord:
    return session.record(2)


LOOKS: dict[str, Callable[[Session], object]] = {
    "dose_response": lambda s: s.dose_response([0.0, 2.0], n=2, rollouts=2),
    "coordinator_ablation": lambda s: s.coordinator_ablation(n=2, rollouts=2),
}


@pytest.mark.parametrize("name", LOOKS)
def test_the_step_after_a_look_is_the_same_to_the_last_bit(
    name: str, config: RunConfig, undisturbed: StepRecord, tmp_path: Path
) -> None:
    with Session(config, tmp_path / "run") as session:
        session.step()
        assert LOOKS[name](session)
        found = session.step()
    assert found.rollouts == undisturbed.rollouts
    assert found.metrics.keys() <= undisturbed.metrics.keys()
    for metric, value in found.metrics.items():
        if not metric.startswith("seconds/"):
            assert value == undisturbed.metrics[metric], metric


def test_a_dose_response_is_about_the_problems_asked_for(session: Session) -> None:
    (row,) = session.dose_response([1.5], n=3, rollouts=2)
    assert (row.scale, row.n_problems, row.n_rollouts) == (1.5, 3, 2)
    ids = [problem.id for problem in session.problems("train")[:2]]
    (row,) = session.dose_response([1.5], prompt_ids=ids, rollouts=2)
    assert row.n_problems == 2
    assert session.dose_response([1.5], prompt_ids=ids, rollouts=2) == [row]


def test_an_ablation_has_a_row_for_the_whole_and_one_a_layer(session: Session) -> None:
    rows = session.coordinator_ablation(n=2, rollouts=2)
    assert [row.layer for row in rows] == ["all", "layers.0", "layers.1"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"rollouts": 1}, "rollouts must be at least 2"),
        ({"n": 0}, "n must be at least 1"),
        ({"prompt_ids": ["nobody"]}, "no problem 'nobody'"),
    ],
)
def test_impossible_questions_are_refused_in_one_line(
    session: Session, asked: dict, message: str
) -> None:
    with pytest.raises(SessionError, match=message):
        session.dose_response(**asked)
