"""Looks that cannot be, and samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.training.tiny import disturb
from workbench.config import RunConfig
from workbench.session import Session
from workbench.store import RunFolderError
from workbench.worker import SessionError


def test_what_cannot_be_looked_at_is_said(s: Session) -> None:
    wrong: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: s.evaluate("hard"), SessionError, "no problems"),
        (lambda: s.evaluate("exam"), SessionError, "exam"),  # type: ignore[arg-type]
        (lambda: s.problems("exam"), SessionError, "exam"),  # type: ignore[arg-type]
        (lambda: s.sample(["1"], policy="teacher"), SessionError, "teacher"),  # type: ignore[arg-type]
        (lambda: s.paired_gain(["nobody"]), SessionError, "nobody"),
        (lambda: s.frame("losses"), RunFolderError, "losses"),
        (lambda: s.record(9), RunFolderError, "no step 9"),
    ]
    for call, error, message in wrong:
        with pytest.raises(error, match=message):
            call()
    assert s.step().step == 1


def test_samples_follow_their_seed_scale_and_policy(s: Session) -> None:
    disturb(s._worker.engine.policy.coordinator, 0.5, seed=1)
    known = s.problems("train")[0].prompt
    first = s.sample([known, "typed"], rollouts=2, seed=3)
    assert [x.sequence for x in first] == [0, 1, 2, 3]
    again = s.sample([known, "typed"], rollouts=2, seed=3)
    assert [(x.token_ids, x.logprob) for x in again] == [(x.token_ids, x.logprob) for x in first]
    assert np.isnan([x.reward for x in first]).tolist() == [False, False, True, True]
    for other in (
        s.sample([known, "typed"], rollouts=2, seed=4),
        s.sample([known, "typed"], rollouts=2, seed=3, coordinator=0.0),
    ):
        assert [x.token_ids for x in other] != [x.token_ids for x in first]
    off = s.sample([known], coordinator=0.0, greedy=True)
    assert off[0].token_ids == s.sample([known], policy="reference", greedy=True)[0].token_ids


def test_the_methods_without_a_baseline_say_so(config: RunConfig, tmp_path: Path) -> None:
    with Session(config.with_changes(method="sft"), tmp_path / "run") as s:
        s.run(2)
        assert s.frame("rollouts").empty
        with pytest.raises(SessionError, match="'sft' keeps no 'baseline' policy"):
            s.paired_gain()
        assert 0 <= s.evaluate() <= 1
        s.rewind(1)
        assert s.frame("findings").empty
