"""What the Rollouts tab says of one rollout, as HTML; no browser."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.tiny import save_tiny_llama, small_config
from workbench import Session
from workbench.ui.rollouts import rollout_detail


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(params=["bridge", "luffy"])
def session(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Iterator[Session]:
    config = small_config(folder, method=request.param, reward_flip=0.4)
    with Session(config, tmp_path / "run") as session:
        session.step()
        session.set(clip_range=0.001)
        session.step()
        yield session


def test_each_token_says_why_it_is_pushed_with_the_settings_of_its_step(session: Session) -> None:
    for step in (1, 2):
        row = next(row for row in session.record(step).rollouts if row.advantage > 0)
        shown = html.unescape(rollout_detail(session, f"{step}/train/joint/{row.sequence}", "kl"))
        if session.config.method == "luffy":  # its objective is not written out
            assert "/ N" not in shown
            continue
        for token in session.token_terms(step, row.sequence):
            for term in token:
                assert term.formula in shown
                assert term.why in shown
