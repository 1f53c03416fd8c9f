"""Rewind and fork, against lists that are simply cut."""

from __future__ import annotations

from random import Random

import pandas as pd
import pytest

from workbench.config import RunConfig
from workbench.records import CommandRow
from workbench.store import RunFolderError, RunStore, open_run


def set_command(step: int, value: float, outcome: str = "done") -> CommandRow:
    return CommandRow(step, "update", value, "set", {"base_lr": value}, outcome)


@pytest.mark.parametrize("seed", range(4))
def test_random_histories_equal_a_list_that_is_cut(seed, tmp_path, config, record):
    draw = Random(seed)
    written: list[tuple[int, float]] = []  # every step ever appended: step, its reward
    live: list[tuple[int, float]] = []  # the history as it stands
    commands: list[CommandRow] = []
    timeline = 0
    with RunStore.create(tmp_path / "run", config) as store:
        for action in range(25):
            kind = draw.choice(["append", "append", "append", "command", "rewind"])
            if kind == "append":
                row = (len(live) + 1, float(action))
                store.append(record(row[0], row[1], rollouts=1))
                live.append(row)
                written.append(row)
            elif kind == "command":
                command = set_command(len(live), float(action))
                store.add_command(command)
                commands.append(command)
            else:
                to_step = draw.randint(0, len(live))
                timeline += 1
                assert store.rewind(to_step) == timeline == store.timeline
                live = live[:to_step]
                commands = [c for c in commands if c.step <= to_step]
            assert store.last_step() == len(live)
        row = (len(live) + 1, -1.0)
        store.append(record(row[0], row[1], rollouts=1))
        live.append(row)
        written.append(row)
        assert store.live_commands("set") == commands

    run = open_run(tmp_path / "run")
    assert run.last_step() == len(live)
    metrics = run.frame("metrics")
    assert list(zip(metrics["step"], metrics["reward"], strict=True)) == live
    history = run.frame("metrics", history=True)
    assert list(zip(history["step"], history["reward"], strict=True)) == written
    kept = history[history["live"]]
    assert list(zip(kept["step"], kept["reward"], strict=True)) == live
    for name in ("rollouts", "gain", "alignment", "coordinator"):
        assert list(run.frame(name)["step"]) == [step for step, _ in live], name
        everything = run.frame(name, history=True)
        assert list(everything["step"]) == [step for step, _ in written], name
        assert list(everything["timeline"]) == list(history["timeline"]), name
        assert list(everything["live"]) == list(history["live"]), name
    for step, value in live:
        assert repr(run.record(step)) == repr(record(step, value, rollouts=1))


def test_some_metrics_are_read_like_all_of_them(tmp_path, config, record):
    with RunStore.create(tmp_path / "run", config) as store:
        for step in (1, 2, 3):
            store.append(record(step))
        store.add_metrics(2, {"late": 5.0})
        store.rewind(1)
        store.append(record(2, 9.0))
    run = open_run(tmp_path / "run")
    assert run.metric_names() == ["reward", "kl", "gain/paired", "eval/accuracy", "late"]
    for only in (["kl"], ["late", "nothing", "reward"], []):
        for history in (False, True):
            whole = run.frame("metrics", history)
            wanted = ["step", *only, "timeline", "live"]
            same = whole[[name for name in whole if name in wanted]]
            pd.testing.assert_frame_equal(run.frame("metrics", history, only=only), same)


def test_superseded_commands_stay_and_are_marked(tmp_path, config, record):
    with RunStore.create(tmp_path / "run", config) as store:
        store.append(record(1))
        store.add_command(set_command(1, 0.1))
        store.add_command(set_command(1, 9.0, outcome="base_lr: too high"))
        store.append(record(2))
        store.add_command(set_command(2, 0.2))
        store.rewind(1)
        store.add_command(CommandRow(1, "rollouts", 0.0, "rewind", {"step": 1}, "done"))
        store.add_command(set_command(1, 0.3))
        assert store.live_commands("set") == [set_command(1, 0.1), set_command(1, 0.3)]
    assert open_run(tmp_path / "run").events() == 5
    frame = open_run(tmp_path / "run").frame("commands")
    assert list(frame["name"]) == ["set", "set", "set", "rewind", "set"]
    assert list(frame["live"]) == [True, True, False, True, True]
    with_timelines = open_run(tmp_path / "run").frame("commands", history=True)
    assert list(with_timelines["timeline"]) == [0, 0, 0, 1, 1]


def test_rewind_deletes_later_snapshots_and_refuses_steps_that_are_not(
    tmp_path, config, record, snapshot
):
    with RunStore.create(tmp_path / "run", config) as store:
        store.save_snapshot(snapshot(0))
        for step in (1, 2, 3):
            store.append(record(step))
            store.save_snapshot(snapshot(step))
        for step in (-1, 4):
            with pytest.raises(RunFolderError, match=f"cannot rewind to step {step}: .* 0 to 3"):
                store.rewind(step)
        store.rewind(2)
        assert store.snapshot_steps() == [0, 2]
        store.append(record(3, 7.0))
        assert store.snapshot_steps() == [0, 2]
    files = sorted(file.name for file in (tmp_path / "run/rollouts").iterdir())
    assert files == [f"step-00000{name}.parquet" for name in ("1", "2", "3", "3.t1")]


@pytest.fixture
def parent(tmp_path, config, record, snapshot):
    """Steps 1 to 4, the last two of them on timeline 1, with snapshots and commands."""
    with RunStore.create(tmp_path / "parent", config) as store:
        store.save_snapshot(snapshot(0))
        for step in (1, 2, 3):
            store.append(record(step))
            store.add_command(set_command(step, step / 10))
        store.rewind(2)
        for step in (3, 4):
            store.append(record(step, 5.0))
            store.save_snapshot(snapshot(step, 5.0))
            store.add_command(set_command(step, step / 10))
        yield store


def test_a_fork_is_the_live_history_up_to_its_step(tmp_path, parent, record, config):
    with parent.fork(tmp_path / "fork", 3) as fork:
        assert fork.last_step() == 3 and fork.snapshot_steps() == [0, 3]
        assert fork.load_snapshot(3).state["loss"] == 5.0
        assert [c.step for c in fork.live_commands("set")] == [1, 2, 3]
        fork.append(record(4, 6.0))
        fork.append(record(5, 6.0))
    run = open_run(tmp_path / "fork")
    assert list(run.frame("metrics", history=True)["reward"]) == [0, 0, 5, 6, 6]
    assert list(run.frame("commands")["step"]) == [1, 2, 3]
    copied = run.record(3)
    took = [name for name in copied.metrics if "snapshot" in name]
    assert took == ["seconds/snapshot", "snapshot/bytes", "snapshot/new_bytes"]
    for name in took:
        del copied.metrics[name]
    assert repr(copied) == repr(record(3, 5.0))
    assert run.config == config
    origin = run.meta["forked_from"]
    assert origin["run"] == "parent" and origin["step"] == 3
    assert (run.path / origin["path"]).resolve() == parent.path.resolve()
    assert "forked from parent at step 3" in repr(run)


def test_a_fork_leaves_its_parent_alone(tmp_path, parent, record, snapshot):
    before = repr([open_run(parent.path).record(step) for step in range(1, 5)])
    with parent.fork(tmp_path / "fork", 3) as fork:
        fork.append(record(4, 6.0))
        fork.save_snapshot(snapshot(3, 6.0))
        fork.rewind(1)
    assert repr([open_run(parent.path).record(step) for step in range(1, 5)]) == before
    assert parent.snapshot_steps() == [0, 3, 4]
    assert parent.load_snapshot(3).state["loss"] == 5.0
    assert open_run(parent.path).state == "idle"


def test_a_fork_with_its_own_config_leaves_inherited_changes_out(tmp_path, parent):
    changed = RunConfig().with_changes(base_lr=0.5)
    with parent.fork(tmp_path / "fork", 4, changed) as fork:
        assert fork.config == changed and fork.live_commands("set") == []
        fork.add_command(set_command(4, 0.6))
        assert fork.live_commands("set") == [set_command(4, 0.6)]
    with RunStore.open(tmp_path / "fork") as fork:
        assert fork.config == changed
        with fork.fork(tmp_path / "grandchild", 4) as grandchild:
            assert grandchild.live_commands("set") == [set_command(4, 0.6)]
    assert open_run(tmp_path / "grandchild").config == changed


def test_a_fork_at_a_wrong_place_is_refused(tmp_path, parent):
    with pytest.raises(RunFolderError, match="cannot fork at step 5: .* 0 to 4"):
        parent.fork(tmp_path / "fork", 5)
    with pytest.raises(RunFolderError, match="parent exists already"):
        parent.fork(parent.path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["parent"]
