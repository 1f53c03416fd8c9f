"""Detectors of a run in progress: told once, whatever happens to the run, and pausing it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.training.tiny import save_tiny_llama
from workbench.config import RunConfig
from workbench.diagnosis.doctor import examine
from workbench.records import Finding
from workbench.session import Session

TOLD = ["key", "step", "since", "severity", "detector", "message", "suggestion"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A tiny untrained model: all its texts are cut off, which is told at step 9."""
    model = save_tiny_llama(tmp_path_factory.mktemp("tiny"))
    return RunConfig().with_changes(
        method="grpo",
        path=str(model),
        device="cpu",
        lora_rank=2,
        terms=(3,),
        n_prompts=12,
        n_validation=3,
        n_hard=0,
        n_demonstrations=8,
        prompts_per_step=2,
        group_size=2,
        demonstrations_per_step=2,
        max_new_tokens=3,
        paired_gain_every=0,
        coordinator_every=0,
        evaluate_every=0,
        alignment_every=0,
        snapshot_every=2,
        keep_last=1,
        keep_every=0,
    )


def test_findings_are_told_once_through_resume_and_rewind(config: RunConfig, tmp_path: Path):
    with Session(config, tmp_path / "whole") as s:
        s.run(11)
        whole = s.frame("findings")
    assert whole["detector"].tolist().count("truncation") == 1
    row = whole[whole["detector"] == "truncation"].iloc[0]
    assert (row["step"], row["since"], row["key"]) == (9, 1, "truncation@9")
    assert row["suggestion"] == {"max_new_tokens": 6} and row["setting"] == "max_new_tokens"

    with Session(config, tmp_path / "cut") as s:
        s.run(9)
        with closing(sqlite3.connect(s.run_dir / "run.sqlite")) as database, database:
            database.execute("DELETE FROM findings")  # as if killed before they were told
    with Session.resume(tmp_path / "cut") as s:
        s.run(2)
        assert s.frame("findings")[TOLD].to_dict("records") == whole[TOLD].to_dict("records")
        s.rewind(8)
        after = s.frame("findings")
        assert not after.loc[after["detector"] == "truncation", "live"].any()
        s.run(3)
        again = s.frame("findings")
        assert again[again["live"]][TOLD].to_dict("records") == whole[TOLD].to_dict("records")
    with closing(sqlite3.connect(tmp_path / "cut/run.sqlite")) as database, database:
        database.execute("DELETE FROM findings")  # as if killed in the last step
    with Session.resume(tmp_path / "cut") as s:  # and no step follows
        late = s.frame("findings")
        assert late[TOLD].to_dict("records") == whole[TOLD].to_dict("records")
    found = examine(tmp_path / "cut").diagnosis.findings
    assert [f.key for f in found] and {f.key for f in found} == set(whole["key"])


def test_policy_pause_stands_after_the_step_and_keeps_the_snapshot_before_the_onset(
    config: RunConfig, tmp_path: Path
):
    with Session(config.with_changes(truncation="pause"), tmp_path / "run") as s:
        s.run(11)
        assert (s.state, s.step_number) == ("paused", 9)
        assert "by truncation" in s.paused_by and s.error == ""
        assert s._worker.engine.store.pinned() == [0]  # the onset is step 1
        command = s.frame("commands").iloc[-1]
        assert (command["name"], command["arguments"]) == (
            "pause",
            {"by": "truncation@9", "kept": 0},
        )
        assert "by truncation" in repr(s)
        s.go_on()  # told already: it goes on to its end
        s.wait()
        assert (s.state, s.step_number, s.paused_by) == ("idle", 11, "")


def test_the_snapshot_kept_is_the_one_from_which_the_step_before_is_reached(
    config: RunConfig, tmp_path: Path
):
    """A snapshot of the step before the onset may hold what went wrong already."""
    seen_at_6 = Finding(6, "warning", "loss_spike", "", {}, "", since=6)
    with Session(config.with_changes(snapshot_every=1, keep_last=9), tmp_path / "run") as s:
        s.run(6)
        before = s.before(seen_at_6)
        assert (before.step, before.snapshot_step) == (4, 4)
        assert s._worker.engine.keep_before(6) == 4
        assert s._worker.engine.store.pinned() == [4]
        with s.fork(tmp_path / "fork", 6) as fork:  # what it shows began before it did
            assert fork.before(seen_at_6).step == fork._worker.engine.keep_before(6) == 6


def test_policy_off_tells_nothing_and_no_policy_changes_a_number(config: RunConfig, tmp_path: Path):
    numbers = {}
    for policy in ("note", "off"):
        with Session(config.with_changes(truncation=policy), tmp_path / policy) as s:
            s.run(9)
            metrics, findings = s.frame("metrics"), s.frame("findings")
        numbers[policy] = metrics[
            [c for c in metrics if not c.startswith(("seconds/", "snapshot/"))]
        ]
        assert ("truncation" in findings["detector"].tolist()) is (policy == "note")
    assert numbers["note"].equals(numbers["off"])
