"""A step executed again is the same to the last bit, and leaves the run alone."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.replay.runs import STEPS, numbers
from workbench import Session
from workbench.config import ConfigError, RunConfig
from workbench.replay import Replay
from workbench.store import RunFolderError


@pytest.mark.parametrize("trace", [False, True], ids=["plain", "traced"])
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_step_is_the_same_to_the_last_bit(s: Session, step: int, trace: bool) -> None:
    """Before and after a snapshot, a change and a set_aside, with every probe due or not."""
    found = s.replay(step, trace=trace)
    assert found.differences.empty, found.differences
    assert found.identical is True and found.on_the_way == []
    assert found.record is not None and repr(found.recorded) == repr(s.record(step))
    assert found.from_snapshot == (0 if step <= 4 else 4)
    assert found.config.training.rl_weight == (0.5 if step <= 2 else 0.7)
    assert found.config.training.set_aside == (() if step <= 3 else ("demo-0003",))
    assert found.traced is trace
    assert [row.token_ids for row in found.record.rollouts] == [
        row.token_ids for row in s.record(step).rollouts
    ]
    assert ("optimizers of snapshot 4" in found.compared) is (step == 4)


@pytest.mark.parametrize("every", [0, 1])
def test_a_trace_measures_more_and_is_compared_with_the_same(
    config: RunConfig, tmp_path: Path, every: int
) -> None:
    """More probes give the alignment's error a better estimate: that is no difference."""
    more = config.with_changes(alignment_every=1, rollout_alignment_every=every, snapshot_every=1)
    with Session(more, tmp_path / "run") as s:
        s.run(2)
        found = s.replay(2, trace=True)
        assert found.identical is True, found.differences
        assert found.record is not None
        rows = [row for row in found.record.rollouts if row.purpose == "train"]
        assert all(math.isfinite(row.grad_norm) for row in rows)
        assert math.isnan(s.record(2).rollouts[0].grad_norm) is (every == 0)


def test_a_replay_compares_the_weights_of_its_snapshot(config: RunConfig, tmp_path: Path) -> None:
    """One weight of the recorded snapshot disturbed: all numbers agree, and the replay says no."""
    with Session(config.with_changes(snapshot_every=1), tmp_path / "run") as s:
        s.run(2)
        engine = s._worker.engine
        snapshot = engine.store.load_snapshot(2)
        array = snapshot.tensors["base/model.safetensors"]["model.norm.weight"]
        array[0] = np.nextafter(array[0], np.float32(9))
        engine.store.save_snapshot(snapshot)
        found = s.replay(2)
        assert list(found.differences["name"]) == ["weights/base/model.safetensors"]
        assert found.identical is False
        assert s.replay(1).identical is True


def test_a_recorded_number_that_is_another_is_listed(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session(config, tmp_path / "run") as s:
        s.run(2)
        engine = s._worker.engine
        engine.store._db.execute(
            "UPDATE metrics SET value = value * 2 WHERE step = 2 AND name = 'grad_norm'"
        )
        engine.store._db.execute("UPDATE demonstrations SET loss = loss + 1 WHERE step = 2")
        engine.store._db.commit()
        found = s.replay(2)
        assert found.identical is False
        listed = found.differences.set_index("name")
        assert list(listed.index) == ["grad_norm", "demonstrations.loss"]  # the largest first
        assert listed.loc["grad_norm", "relative"] == pytest.approx(0.5)
        assert listed.loc["demonstrations.loss", "count"] == 3
        assert listed.loc["demonstrations.loss", "difference"] == pytest.approx(-1)
        assert "2 differences" in repr(found)
        assert s.replay(1).identical is True
        assert s.frame("findings").empty  # looking leaves nothing in the folder


def test_replays_leave_the_run_alone(
    config: RunConfig, every_step: Session, tmp_path: Path
) -> None:
    with Session(config, tmp_path / "run") as s:
        s.run(2)
        files = sorted(path for path in s.run_dir.rglob("*") if path.is_file())
        s.replay(1, trace=True, base_lr=0.5)
        s.replay(2, trace=True)
        s.replay(3)
        assert sorted(path for path in s.run_dir.rglob("*") if path.is_file()) == files
        assert list(s.frame("commands")["name"]) == ["run"]
        assert s.config == config and s.step_number == 2
        s.run(2)
        pd.testing.assert_frame_equal(numbers(s), numbers(every_step), check_exact=True)


def test_a_replay_inside_a_paused_step_leaves_the_step_alone(
    config: RunConfig, every_step: Session, tmp_path: Path
) -> None:
    """While step 3 stands before each of its phases in turn."""
    with Session(config.with_changes(snapshot_every=1), tmp_path / "run") as s:
        s.run(2)
        seen: list[bool | None] = []
        original = s._worker._control

        def control(phase: str) -> None:
            if s.step_number == 2:
                look = s._worker.engine
                from workbench.replaying import replay

                again = replay(look, 2, trace=True, changes={}, again=lambda *_: None)
                seen.append(again.identical)
            original(phase)

        s._worker._control = control  # type: ignore[method-assign]
        s.run(1)
        assert seen == [True] * 5
        expected = numbers(every_step).iloc[:3]
        pd.testing.assert_frame_equal(numbers(s), expected, check_exact=True)


def test_the_next_step_can_be_seen_before_it_is_made(config: RunConfig, tmp_path: Path) -> None:
    with Session(config.with_changes(snapshot_every=2), tmp_path / "run") as s:
        first = s.replay(1)
        assert first.identical is None and first.recorded is None
        s.run(2)
        ahead = s.replay(3)
        assert ahead.identical is None and ahead.record is not None
        made = s.step()
        same = {n: v for n, v in ahead.record.metrics.items() if not n.startswith("seconds/")}
        for name, value in same.items():
            assert value == made.metrics[name] or math.isnan(value), name
        assert s.replay().step == 3


def test_a_step_that_cannot_be_is_refused_in_one_line(s: Session, tmp_path: Path) -> None:
    for step in (0, -1, STEPS + 2):
        with pytest.raises(RunFolderError, match=f"step {step}: there are steps 1 to 6, and 7"):
            s.replay(step)
    with pytest.raises(ConfigError, match="rl_wait: no such setting; did you mean 'rl_weight'"):
        s.replay(3, rl_wait=1)
    with pytest.raises(ConfigError, match="rl_weight"):
        s.replay(3, rl_weight=2)
    with pytest.raises(ConfigError, match="lora_rank: .*model"):
        s.replay(3, lora_rank=2)
    with s.fork(tmp_path / "fork", step=4) as fork:
        fork.run(2)
        assert fork.replay(6).identical is True
        assert fork.replay(5, trace=True).identical is True
        with pytest.raises(RunFolderError, match=r"there are steps 5 to 6.*forked at 4"):
            fork.replay(4)


def test_a_step_that_fails_says_where(config: RunConfig, tmp_path: Path) -> None:
    """A learning rate that overflows: the trace of the next step shows the first bad layer."""
    with Session(config.with_changes(base_lr=1.0, coordinator_lr=1.0), tmp_path / "run") as s:
        s.run(1)
        snapshot = s._worker.engine.snapshot()
        weight = snapshot.tensors["base/model.safetensors"]
        weight["model.layers.1.mlp.down_proj.weight"][:] = np.inf
        s._worker.engine.store.save_snapshot(snapshot)
        found = s.replay(2, trace=True)
        assert "step 2 was not applied" in found.error and found.record is None
        bad = found.layers[found.layers["nonfinite"] > 0]
        assert list(bad["module"])[0] == "layers.1.mlp"
        fine = found.layers[found.layers["layer"] == "layers.0"]
        assert (fine["nonfinite"] == 0).all() and len(fine) > 0
        assert found.updates.empty and found.tokens.empty
        assert "not applied" in found._repr_html_()


def test_progress_is_told_step_by_step(s: Session) -> None:
    told: list[tuple[int, int]] = []
    s.replay(4, progress=lambda number, last: told.append((number, last)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert s.progress.doing == ""


def test_a_frame_of_a_replay_is_that_of_the_run(s: Session, traced: Replay) -> None:
    columns = ["step", "demonstration_id", "loss", "n_tokens"]
    run = s.frame("demonstrations")
    mine = traced.frame("demonstrations")[columns]
    pd.testing.assert_frame_equal(
        mine, run[run["step"] == 5][columns].reset_index(drop=True), check_dtype=False
    )
    with pytest.raises(ValueError, match="no table 'metrics'"):
        traced.frame("metrics")
