"""What was appended comes back equal, from every side."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import fields

import pytest

from workbench.records import CommandRow, DemonstrationRow, Finding, RolloutRow
from workbench.store import RunFolderError, RunStore, open_run

ALL_FRAMES = {
    "metrics",
    "rollouts",
    "gain",
    "demonstrations",
    "alignment",
    "coordinator",
    "commands",
    "findings",
}


def same(first, second):
    """Equal to the last bit, NaN equal to NaN: repr of a float is exact."""
    return repr(first) == repr(second)


def test_a_record_comes_back_equal(tmp_path, config, record):
    records = [record(1, 0.5), record(2, -1.5, rollouts=0), record(3, 2.5)]
    with RunStore.create(tmp_path / "run", config) as store:
        for each in records:
            store.append(each)
    run = open_run(tmp_path / "run")
    for each in records:
        assert same(run.record(each.step), each)


def test_a_step_without_rollouts_has_no_file(tmp_path, config, record):
    with RunStore.create(tmp_path / "run", config) as store:
        store.append(record(1, rollouts=0))
        store.append(record(2))
    assert [f.name for f in (tmp_path / "run/rollouts").iterdir()] == ["step-000002.parquet"]
    assert len(open_run(tmp_path / "run").rollouts(1)) == 0
    assert list(open_run(tmp_path / "run").frame("rollouts")["step"]) == [2, 2]


def test_metrics_frame_has_a_row_a_step(tmp_path, config, record):
    with RunStore.create(tmp_path / "run", config) as store:
        for step in (1, 2, 3):
            store.append(record(step, step / 10))
    frame = open_run(tmp_path / "run").frame("metrics")
    assert list(frame) == ["step", "reward", "kl", "gain/paired", "eval/accuracy"]
    assert list(frame["step"]) == [1, 2, 3] and frame["step"].dtype == "int64"
    assert list(frame["reward"]) == [0.1, 0.2, 0.3]
    assert frame["gain/paired"].isna().all()
    assert list(frame["eval/accuracy"].isna()) == [True, False, True]


def test_frames_have_the_fields_of_the_rows(tmp_path, config, record):
    with RunStore.create(tmp_path / "run", config) as store:
        store.append(record(1))
        store.append(record(2))
    run = open_run(tmp_path / "run")
    frame = run.frame("demonstrations")
    assert list(frame) == [field.name for field in fields(DemonstrationRow)]
    rows = record(1).demonstrations + record(2).demonstrations
    for name in frame:
        assert same(frame[name].tolist(), [getattr(row, name) for row in rows]), name
    rollouts = run.frame("rollouts")
    assert list(rollouts) == [field.name for field in fields(RolloutRow)]
    second = record(2).rollouts[1]
    assert rollouts["logprob"].iloc[3].tolist() == second.logprob
    assert list(run.frame("coordinator")["singular_values"].iloc[0])[0] > 0
    assert run.frame("alignment")["conflict"].dtype == bool


def test_a_new_run_has_every_frame_with_its_types(tmp_path, config, record):
    with RunStore.create(tmp_path / "new", config):
        pass
    with RunStore.create(tmp_path / "run", config) as store:
        store.append(record(1))
        store.add_command(CommandRow(0, "rollouts", 1.5, "run", {}, "done"))
        store.add_finding(Finding(1, "info", "start", "went well", {}, ""))
    for name in ALL_FRAMES:
        new = open_run(tmp_path / "new").frame(name, history=True)
        full = open_run(tmp_path / "run").frame(name, history=True)
        assert len(new) == 0 and len(full) > 0
        assert (new.dtypes == full.dtypes[list(new)]).all(), name
        assert name == "metrics" or list(new) == list(full), name


def test_commands_and_findings_come_back(tmp_path, config):
    command = CommandRow(0, "rollouts", 12.25, "set", {"base_lr": 1e-5, "note": "ü"}, "done")
    finding = Finding(0, "critical", "nonfinite", "loss", {"value": math.inf}, "base_lr")
    with RunStore.create(tmp_path / "run", config) as store:
        store.add_command(command)
        store.add_finding(finding)
        assert store.live_commands("set") == [command]
    for name, row in (("commands", command), ("findings", finding)):
        frame = open_run(tmp_path / "run").frame(name)
        assert frame.iloc[0].drop("live").to_dict() == vars(row)
        assert list(frame["live"]) == [True]


def test_the_reader_sees_a_step_as_soon_as_it_is_appended(tmp_path, config, record):
    with RunStore.create(tmp_path / "run", config, purpose="test") as store:
        run = open_run(tmp_path / "run")
        assert run.last_step() == 0
        store.append(record(1))
        assert run.last_step() == 1 and len(run.frame("metrics")) == 1
    assert run.meta["purpose"] == "test" and run.config == config and run.name == "run"


def test_bad_requests_say_what_there_is(tmp_path, config, record):
    with RunStore.create(tmp_path / "run", config) as store:
        store.append(record(1))
    run = open_run(tmp_path / "run")
    with pytest.raises(RunFolderError, match="no frame 'metric'; there are metrics, rollouts"):
        run.frame("metric")
    for read in (run.record, run.rollouts):
        with pytest.raises(RunFolderError, match="has no step 2; its last is 1"):
            read(2)
    (tmp_path / "run/rollouts/step-000001.parquet").unlink()
    for read in (lambda: run.frame("rollouts"), lambda: run.rollouts(1), lambda: run.record(1)):
        with pytest.raises(RunFolderError, match="step-000001.parquet is missing"):
            read()
    assert len(run.frame("metrics")) == 1


def test_a_step_out_of_order_is_refused(tmp_path, config, record):
    with RunStore.create(tmp_path / "run", config) as store:
        with pytest.raises(AssertionError):
            store.append(record(2))
        store.append(record(1))
        with pytest.raises(AssertionError):
            store.append(record(1))


def test_a_folder_named_like_a_setting_adds_no_column(tmp_path, config, record):
    with RunStore.create(tmp_path / "lr=5e-5 #1?", config) as store:
        store.append(record(1))
    assert same(open_run(tmp_path / "lr=5e-5 #1?").record(1), record(1))


def test_datasets_reads_a_rollouts_file(tmp_path, config, record):
    datasets = pytest.importorskip("datasets")
    with RunStore.create(tmp_path / "run", config) as store:
        store.append(record(1))
    loaded = datasets.load_dataset(
        "parquet",
        data_files=str(tmp_path / "run/rollouts/*.parquet"),
        cache_dir=str(tmp_path / "cache"),
        split="train",
    )
    assert loaded["completion"][:] == [row.completion for row in record(1).rollouts]
    assert loaded["token_ids"][1] == record(1).rollouts[1].token_ids


def test_summary_escapes_what_it_shows(tmp_path, config, record):
    with RunStore.create(tmp_path / "<b>&", config) as store:
        store.append(record(1, 0.25))
    run = open_run(tmp_path / "<b>&")
    assert "Run <b>&: closed, 1 step of bridge" in repr(run) and "reward 0.25" in repr(run)
    assert "Run &lt;b&gt;&amp;: closed" in run._repr_html_()
    assert len(repr(run).splitlines()) <= 5


def test_the_store_needs_no_torch():
    code = (
        "import sys, workbench.store; print({'torch', 'transformers', 'gradio'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
