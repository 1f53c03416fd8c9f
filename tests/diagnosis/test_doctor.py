"""`doctor` on run folders and on the logs of other trainers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.diagnosis.made import healthy
from tests.frames import make_records
from workbench.__main__ import main
from workbench.config import RunConfig
from workbench.diagnosis.doctor import examine, settings_in_force
from workbench.diagnosis.logs import read_log
from workbench.records import CommandRow, Finding
from workbench.store import RunFolderError, RunStore, open_run


def trl_history(n: int = 40, cut_off: float = 0.0) -> list[dict[str, float]]:
    """What a GRPOTrainer leaves in log_history, evaluations in rows of their own."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, float]] = []
    for i in range(1, n + 1):
        rows.append(
            {
                "step": 10 * i,
                "loss": float(0.01 * rng.normal()),
                "grad_norm": float(np.exp(0.3 * rng.normal())),
                "learning_rate": 1e-6,
                "reward": float(0.3 + 0.01 * i + 0.03 * rng.normal()),
                "reward_std": 0.4,
                "frac_reward_zero_std": 0.2,
                "kl": 0.001 * i,
                "entropy": 0.4,
                "completions/mean_length": 200.0,
                "completions/clipped_ratio": cut_off if i >= 20 else 0.0,
                "clip_ratio/region_mean": 0.01,
            }
        )
        if i % 10 == 0:
            rows.append({"step": 10 * i, "eval_loss": 0.1, "eval_accuracy": 0.3 + 0.01 * i})
    return [*rows, {"step": 10 * n, "train_runtime": 12.0}]


def test_trainer_state_a_folder_with_one_and_a_bare_list_give_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = trl_history(cut_off=0.3)
    checkpoint = tmp_path / "checkpoint-400"
    checkpoint.mkdir()
    state = checkpoint / "trainer_state.json"
    state.write_text(json.dumps({"global_step": 400, "log_history": rows}))
    bare, lines = tmp_path / "log.json", tmp_path / "log.jsonl"
    bare.write_text(json.dumps(rows))
    lines.write_text("\n".join(map(json.dumps, rows)))
    reports = []
    for path in (state, checkpoint, bare, lines):
        assert main(["doctor", str(path), "--json"]) == 2
        reports.append(json.loads(capsys.readouterr().out) | {"source": ""})
    assert reports[0] == reports[1] == reports[2] == reports[3]
    (finding,) = reports[0]["findings"]
    assert (finding["detector"], finding["severity"], finding["since"]) == (
        "truncation",
        "critical",
        200,
    )
    assert {"detector": "coordinator_blowup", "reason": "no coordinator/ratio"} in reports[0][
        "skipped"
    ]
    assert main(["doctor", str(state)]) == 2
    said = capsys.readouterr().out
    assert "CRITICAL truncation, since step 200" in said
    assert "max_new_tokens (max_completion_length in TRL)" in said
    assert "SKIPPED: " in said and "coordinator_blowup" in said


def test_exit_code_is_the_worst_severity(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for cut_off, code in ((0.0, 0), (0.1, 1), (0.3, 2)):
        log = tmp_path / f"{cut_off}.json"
        log.write_text(json.dumps(trl_history(cut_off=cut_off)))
        assert main(["doctor", str(log)]) == code
        out = capsys.readouterr().out
        assert ("nothing found" in out) is (code == 0)


def test_csv_with_names_of_verl(tmp_path: Path):
    frame = healthy()
    frame.loc[frame["step"] >= 30, "frac_reward_zero_std"] = np.nan
    frame.loc[frame["step"] >= 30, "completions/clipped_ratio"] = 0.3
    verl = frame[["step", "reward", "entropy", "grad_norm", "completions/clipped_ratio"]].rename(
        columns={
            "step": "training/global_step",
            "reward": "critic/rewards/mean",
            "entropy": "actor/entropy",
            "grad_norm": "actor/grad_norm",
            "completions/clipped_ratio": "response_length/clip_ratio",
        }
    )
    verl["val-core/math/acc/mean@1"] = frame["eval/accuracy"]
    path = tmp_path / "metrics.csv"
    verl.to_csv(path, index=False)
    rows = read_log(path)
    assert [step for step, _ in rows] == frame["step"].tolist()
    assert rows[4][1].keys() == {
        "reward",
        "entropy",
        "grad_norm",
        "completions/clipped_ratio",
        "eval/accuracy",
    }
    assert rows[4][1]["reward"] == pytest.approx(frame["reward"][4])
    assert "eval/accuracy" not in rows[1][1]  # an empty cell is no NaN
    (finding,) = [f for f in examine(path).diagnosis.findings if f.severity != "note"]
    assert (finding.detector, abs(finding.since - 30) <= 1) == ("truncation", True)


def test_a_logged_nan_is_a_finding(tmp_path: Path):
    rows = trl_history()
    rows[11]["grad_norm"] = float("nan")
    path = tmp_path / "log.json"
    path.write_text(json.dumps(rows))  # Python writes NaN, as Trainer does
    (finding,) = examine(path).diagnosis.findings
    assert (finding.detector, finding.since) == ("non_finite", int(rows[11]["step"]))
    json.loads(examine(path).as_json(), parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("none", None, "neither a run folder nor a log"),
        ("x.json", "{", "neither JSON nor JSON lines"),
        ("x.json", "{}", "no log_history"),
        ("x.json", "[1, 2]", "no log_history"),
        ("x.json", "[]", "holds no metrics"),
        ("x.csv", "step,reward\n", "holds no metrics"),
        ("x.csv", "\x00", "holds no metrics"),
        ("x.csv", b"step,loss\n1,\xff\n", "it is not UTF-8 text"),
        ("x.json", b"\x80\x04\x95", "it is not UTF-8 text"),
        ("x.csv", "Wall time,Step,Val\x1bue\n1,2,3\n", "it holds: Val�ue, Wall time"),
    ],
)
def test_what_is_no_log_is_said_in_one_line_on_stderr(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    text: str | bytes | None,
    said: str,
):
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(["doctor", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err
    with pytest.raises(RunFolderError):
        examine(path)


def test_steps_that_are_no_numbers_are_counted_and_other_separators_and_charts_are_read(
    tmp_path: Path,
):
    path = tmp_path / "x.json"
    path.write_text('[{"step": Infinity, "loss": 1}, {"step": "?", "loss": 2}, {"loss": 3}]')
    assert read_log(path) == [(1, {"loss": 1.0}), (2, {"loss": 2.0}), (3, {"loss": 3.0})]
    path = tmp_path / "x.csv"
    path.write_text("step;reward\n10;0.5\n20;0.25\n")
    assert read_log(path) == [(10, {"reward": 0.5}), (20, {"reward": 0.25})]
    path.write_text('"Step","a run - train/reward","a run - train/reward__MIN"\n"4","0.5","0.4"\n')
    assert read_log(path) == [(4, {"reward": 0.5, "train/reward__MIN": 0.4})]


def test_a_run_folder_has_its_rollouts_read_and_its_own_findings_told(tmp_path: Path):
    with RunStore.create(tmp_path / "run", RunConfig()) as store:
        for record in make_records(12):
            store.append(record)
        store.add_finding(Finding(12, "critical", "fault", "no memory", {"type": "Error"}, ""))
        store.add_finding(Finding(12, "warning", "truncation", "stale", {}, "", key="old"))
    report = examine(tmp_path / "run")
    assert report.kind == "run" and report.exit_code == 2
    told = report.diagnosis.findings
    assert [f.message for f in told if f.detector == "fault"] == ["no memory"]
    assert not [f for f in told if f.message == "stale"]  # detectors are asked anew
    skipped = {s.detector for s in report.diagnosis.skipped}
    assert "verifier_noisy" not in skipped  # its metric was read from the rollouts


def test_files_that_are_not_what_was_written_are_told_once_nobody_writes(tmp_path: Path):
    with RunStore.create(tmp_path / "run", RunConfig()) as store:
        for record in make_records(3):
            store.append(record)
        (tmp_path / "run/rollouts/step-000002.parquet").write_bytes(b"PAR1")
        assert examine(tmp_path / "run").exit_code == 0
    report = examine(tmp_path / "run")
    (finding,) = report.diagnosis.findings
    assert (finding.detector, report.exit_code) == ("run_folder", 2)
    assert "step-000002.parquet is damaged" in finding.message


def test_settings_are_those_in_force_at_a_step_and_a_fork_s_its_own(tmp_path: Path):
    def change(step: int, **arguments: object) -> CommandRow:
        return CommandRow(step, "rollouts", 0.0, "set", arguments, "done")

    records = make_records(6)
    with RunStore.create(tmp_path / "run", RunConfig()) as store:
        for record in records:
            store.append(record)
            if record.step == 3:
                store.add_command(change(3, kl_coef=0.5))
        fork = store.fork(tmp_path / "fork", 5, RunConfig().with_changes(kl_coef=0.25))
    with fork:
        fork.append(records[5])
        fork.add_command(change(6, clip_range=0.1))
    in_force = settings_in_force(open_run(tmp_path / "run"))
    assert [in_force(step)["kl_coef"] for step in (1, 3, 4, 6)] == [1e-3, 1e-3, 0.5, 0.5]
    in_force = settings_in_force(open_run(tmp_path / "fork"))
    assert [in_force(step)["kl_coef"] for step in (5, 6, 7)] == [0.25] * 3
    assert in_force(7)["clip_range"] == 0.1


def test_hostile_text_of_a_log_is_printed_harmless(tmp_path: Path):
    rows = trl_history()
    for row in rows[30:]:
        row["loss\x1b[31m<b>"] = float("inf")
    path = tmp_path / "log.json"
    path.write_text(json.dumps(rows))
    assert "\x1b" not in str(examine(path))
