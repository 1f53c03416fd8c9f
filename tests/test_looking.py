"""Looks of a Session: what they answer. That they change nothing: session/test_same_numbers.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.training.tiny import save_tiny_llama, small_config
from workbench import Session
from workbench.config import RunConfig
from workbench.store import RunFolderError
from workbench.worker import SessionError


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = save_tiny_llama(tmp_path_factory.mktemp("tiny"))
    return small_config(
        folder,
        snapshot_every=1,
        paired_gain_every=1,
        paired_prompts=2,
        paired_rollouts=2,
        reward_flip=0.4,  # an untrained model earns nothing else, and would not move
    )


@pytest.fixture(scope="module")
def session(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """Two steps old; only looked at."""
    with Session(config, tmp_path_factory.mktemp("run") / "run") as session:
        session.step()
        session.step()
        yield session


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


def test_a_llama_has_no_weights_that_cannot_be_followed(session: Session) -> None:
    assert session.skipped_weights().empty


def test_answers_are_checked_and_rank_the_ledger(session: Session) -> None:
    rows = session.check_answers(["demo-0001", "demo-0000"], rollouts=3)
    assert [row.demonstration_id for row in rows] == ["demo-0001", "demo-0000"]
    assert session.check_answers(["demo-0001", "demo-0000"], rollouts=3) == rows
    every = session.check_answers(rollouts=1)
    assert len(every) == len(session.data().query("split == 'demonstrations'"))
    visited = session.ledger(every)
    assert visited["disagreement"].notna().all()
    with pytest.raises(SessionError, match="no demonstration 'nobody'"):
        session.check_answers(["nobody"])
    with pytest.raises(SessionError, match="rollouts must be at least 1"):
        session.check_answers(rollouts=0)


def test_the_snapshot_that_drew_a_rollout_draws_it_again(session: Session) -> None:
    """Step 2's rollouts, and its paired ones, were drawn by the weights that step 1 left."""
    rows = session.record(2).rollouts
    assert {row.purpose for row in rows} == {"train", "paired"}
    for row in rows:
        if row.sequence % 3 == 0:
            (found,) = session.counterfactual(
                2,
                row.sequence,
                purpose=row.purpose,
                written_by=row.policy,
                policy=row.policy,
                snapshot_step=1,
            )
            assert found.factual.token_ids == row.token_ids
            assert found.other.token_ids == row.token_ids
            assert found.first_parting is None
            assert found.logprob == pytest.approx(row.sampling_logprob, abs=1e-5)
            assert (found.noise, found.snapshot_step) == ("own", 1)


def test_the_present_policy_is_another_than_the_one_that_drew_a_rollout(session: Session) -> None:
    (now,) = session.counterfactual(1, 2)
    (then,) = session.counterfactual(1, 2, snapshot_step=0)
    assert now.snapshot_step is None
    assert now.logprob != pytest.approx(then.logprob, abs=1e-4)


def test_token_terms_add_up_to_the_losses_of_their_step(config: RunConfig, tmp_path: Path) -> None:
    """Also after a live change: each step's terms are made with the step's own settings."""
    with Session(config, tmp_path / "run") as s:
        s.step()
        s.set(kl_coef=2.0, clip_range=0.001)
        s.step()
        s.set(kl_coef=0.5)
        for step in (1, 2):
            record = s.record(step)
            trained = [row for row in record.rollouts if row.purpose == "train"]
            terms = [
                term
                for row in trained
                for token in s.token_terms(step, row.sequence)
                for term in token
            ]
            assert len(terms) == 2 * sum(len(row.token_ids) for row in trained)
            for loss in ("rl", "baseline_rl"):
                total = sum(term.value for term in terms if term.loss == loss)
                assert -total == pytest.approx(record.metrics[f"loss/{loss}"], rel=1e-4, abs=1e-7)
            share = np.mean([term.clipped for term in terms if term.loss == "baseline_rl"])
            assert share == pytest.approx(record.metrics["baseline/clip_ratio"], abs=1e-6)
        assert [s.reader.config_at(step).get("kl_coef") for step in (1, 2, 3)] == [0.03, 2.0, 0.5]
        for to_step, kl_coef in ((1, 2.0), (0, 0.03)):  # what was set after step 1 is kept there
            s.rewind(to_step)
            assert s.config.get("kl_coef") == kl_coef
            assert s.reader.config_at(to_step + 1) == s.config
        with pytest.raises(SessionError, match="no train rollout 99"):
            s.step()
            s.token_terms(1, 99)


def test_a_pasted_text_gets_one_completion_for_each_draw_of_noise(session: Session) -> None:
    found = session.counterfactual(prompt="1+2=?", text="1+2=3\n#3", answer="3", rollouts=3)
    assert [one.first_parting for one in found] == [None] * 3
    assert [one.other.completion for one in found] == ["1+2=3\n#3"] * 3  # longer than any rollout
    assert [one.noise for one in found] == ["hindsight"] * 3
    assert found[0].factual.reward == 1
    off = session.counterfactual(
        prompt="1+2=?", text="1+2=3\n#3", policy="reference", rollouts=3, seed=1
    )
    assert any(one.first_parting is not None for one in off)


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"step": 1}, SessionError, "give step and sequence, or prompt and text"),
        ({"prompt": "1"}, SessionError, "give step and sequence, or prompt and text"),
        (
            {"step": 1, "sequence": 0, "prompt": "1", "text": "2"},
            SessionError,
            "give step and sequence, or prompt and text",
        ),
        ({"step": 1, "sequence": 99}, SessionError, "no train rollout 99 of joint"),
        ({"step": 9, "sequence": 0}, RunFolderError, "no step 9"),
        ({"step": 1, "sequence": 0, "snapshot_step": 7}, RunFolderError, "no snapshot of step 7"),
        ({"prompt": "1", "text": "", "finished": False}, SessionError, "must not be empty"),
        ({"prompt": "1", "text": "2", "rollouts": 0}, SessionError, "rollouts must be at least 1"),
        ({"step": 1, "sequence": 0, "rollouts": 2}, SessionError, "one completion"),
    ],
)
def test_impossible_counterfactuals_are_refused_in_one_line(
    session: Session, asked: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        session.counterfactual(**asked)


def test_a_fork_cannot_make_its_trunks_noise_again(session: Session, tmp_path: Path) -> None:
    with session.fork(tmp_path / "fork", step=1, seed=5) as fork:
        with pytest.raises(SessionError, match="forked from"):
            fork.counterfactual(1, 0)
        with pytest.raises(RunFolderError, match="config of steps from 2 on"):
            fork.token_terms(1, 0)
        fork.step()
        (found,) = fork.counterfactual(2, 0, snapshot_step=1)
        assert found.first_parting is None


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


def test_a_rollout_on_a_demonstrations_prompt_is_scored_too(
    config: RunConfig, tmp_path: Path
) -> None:
    with Session(config.with_changes(method="superrl"), tmp_path / "run") as s:
        row = next(row for row in s.step().rollouts if row.purpose == "train")
        assert row.prompt_id.startswith("demo")
        (found,) = s.counterfactual(1, row.sequence, snapshot_step=0)
        assert found.other.completion == row.completion
        assert found.other.reward == float(row.extracted == row.answer)
