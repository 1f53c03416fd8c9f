"""A run through its Session: whatever is looked at, stopped or rewound, the numbers are the same.

Every claim compares with `history`: an uninterrupted run of six steps.
"""

from __future__ import annotations

import _thread
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.training.tiny import copy_of, disturb, same_bits, save_tiny_llama
from workbench.config import ConfigError, RunConfig
from workbench.session import Session
from workbench.store import Run, RunFolderError, open_run
from workbench.worker import SessionError

STEPS = 6


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    model = save_tiny_llama(tmp_path_factory.mktemp("tiny"))
    return RunConfig().with_changes(
        path=str(model),
        device="cpu",
        lora_rank=2,
        terms=(3,),
        n_prompts=12,
        n_validation=3,
        n_hard=0,
        n_demonstrations=8,
        base_lr=1e-3,
        coordinator_lr=1e-2,
        prompts_per_step=4,
        group_size=4,
        demonstrations_per_step=4,
        reward_flip=0.4,  # an untrained model earns nothing else
        max_new_tokens=5,
        paired_gain_every=3,
        paired_prompts=2,
        paired_rollouts=2,
        coordinator_every=2,
        evaluate_every=0,
        evaluation_max_new_tokens=5,
        snapshot_every=2,
        keep_last=2,
        keep_every=0,
    )


def weights(s: Session) -> dict[str, torch.Tensor]:
    """Copies of θ, θ̂ and w under distinct names."""
    policy = s._worker.engine.policy
    parts = {"θ": policy.base, "θ̂": policy.baseline_base, "w": policy.coordinator}
    return {f"{p} {n}": t for p, part in parts.items() for n, t in copy_of(part).items()}


def numbers(run: Session | Run, last: int = STEPS) -> pd.DataFrame:
    """All metrics up to a step, but those of the machine: time, and what snapshots took."""
    frame = run.frame("metrics").set_index("step").loc[:last]
    return frame[[name for name in sorted(frame) if not name.startswith(("seconds/", "snapshot/"))]]


def assert_same_numbers(run: Session | Run, expected: pd.DataFrame) -> None:
    found = numbers(run)
    assert len(found) == STEPS
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


class History:
    """The uninterrupted run."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        with Session(config, folder) as s:
            self.weights = [weights(s)]
            for _ in range(STEPS):
                s.step()
                self.weights.append(weights(s))
            self.numbers = numbers(s)
            self.rollouts = s.frame("rollouts")


@pytest.fixture(scope="module")
def history(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> History:
    return History(config, tmp_path_factory.mktemp("history") / "run")


@pytest.fixture
def s(config: RunConfig, tmp_path: Path) -> Iterator[Session]:
    with Session(config, tmp_path / "run") as session:
        yield session


class Gate:
    """Holds the worker inside a phase until `open` is called."""

    def __init__(self, patch: pytest.MonkeyPatch, name: str) -> None:
        self.entered, self._released = threading.Event(), threading.Event()
        owner, _, attribute = name.rpartition(".")
        self._patch = patch
        target = __import__("importlib").import_module(f"workbench.training.{owner.split('.')[0]}")
        for part in owner.split(".")[1:]:
            target = getattr(target, part)
        original: Callable[..., Any] = getattr(target, attribute)

        def held(*args: Any, **kwargs: Any) -> Any:
            self.entered.set()
            assert self._released.wait(60)
            return original(*args, **kwargs)

        patch.setattr(target, attribute, held)

    def wait(self) -> None:
        assert self.entered.wait(60)

    def open(self) -> None:
        self._released.set()


def in_thread(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def until(s: Session, condition: Callable[[], bool]) -> None:
    """Wait for the session to change until the condition holds."""
    for _ in range(600):
        if condition():
            return
        s._worker.wait_change(0.1)
    raise AssertionError("it never came true")


def pause_half_way(s: Session, patch: pytest.MonkeyPatch) -> None:
    """Start running and pause between the probes and the update of the next step."""
    with patch.context() as inner:
        gate = Gate(inner, "trainer.measure")
        s.start()
        gate.wait()
        pausing = in_thread(s.pause)
        until(s, lambda: s.state == "pausing")
        gate.open()
        pausing.join(60)
    assert s.state == "paused"
    assert s.progress.phase == "update"


def look_at_everything(s: Session) -> None:
    """Each way to look at the policy."""
    samples = s.sample(["12+7-30=?"], coordinator=0.5, rollouts=2)
    assert len(samples) == 2
    s.sample(["12+7-30=?"], policy="baseline", greedy=True)
    s.coordinator_effect("1+2=?", scales=[0.5, 1.0])
    s.paired_gain(rollouts=2)
    s.evaluate(n=2)
    s.dose_response([0.5], n=1, rollouts=2)
    s.coordinator_ablation(n=1, rollouts=2)
    s.counterfactual(prompt="1+2=?", text="#3", policy="baseline", rollouts=2)
    if s.step_number:
        s.counterfactual(1, 0, coordinator=0.0, snapshot_step=0)
    s.frame("rollouts")
    repr(s), s._repr_html_(), s.progress


# --- the same numbers ---------------------------------------------------------------------------


def test_same_seed_same_numbers_other_seed_other_numbers(
    s: Session, config: RunConfig, history: History, tmp_path: Path
) -> None:
    s.run(STEPS)
    assert_same_numbers(s, history.numbers)
    assert same_bits(weights(s), history.weights[STEPS])
    tokens = [ids.tolist() for ids in s.frame("rollouts")["token_ids"]]
    assert tokens == [ids.tolist() for ids in history.rollouts["token_ids"]]
    with Session(config.with_changes(seed=1), tmp_path / "other") as other:
        other.run(1)
        theirs = [ids.tolist() for ids in other.frame("rollouts")["token_ids"]]
    assert theirs != tokens[: len(theirs)]


def test_looking_between_and_during_steps_changes_nothing(
    s: Session, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_at_everything(s)
    s.run(1)
    look_at_everything(s)
    pause_half_way(s, monkeypatch)
    half_way = weights(s)
    assert same_bits(half_way, history.weights[1])
    look_at_everything(s)
    assert same_bits(weights(s), half_way)
    s.resume()
    s.evaluate(n=1)  # while it runs
    s.pause()
    s.run(STEPS - s.step_number)
    assert_same_numbers(s, history.numbers)
    assert same_bits(weights(s), history.weights[STEPS])


def test_looks_are_no_commands(s: Session) -> None:
    look_at_everything(s)
    assert s.frame("commands").empty


def test_a_change_during_a_pause_half_way_executes_the_step_again(
    s: Session, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    pause_half_way(s, monkeypatch)
    s.save()
    assert s.state == "paused"
    assert s.step_number == 0
    s.run(STEPS)
    assert_same_numbers(s, history.numbers)


def test_rewind_brings_back_the_state_and_the_future(s: Session, history: History) -> None:
    s.run(5)
    s.rewind(3)  # between the snapshots of steps 2 and 4
    assert s.step_number == 3
    assert same_bits(weights(s), history.weights[3])
    assert list(s.frame("metrics")["step"]) == [1, 2, 3]
    s.run(STEPS - 3)
    assert_same_numbers(s, history.numbers)
    assert same_bits(weights(s), history.weights[STEPS])
    whole = s.frame("metrics", history=True)
    assert list(whole["step"][~whole["live"]]) == [4, 5]
    assert s.frame("findings").empty  # steps executed again gave the recorded numbers
    s.rewind(0)
    assert same_bits(weights(s), history.weights[0])
    s.rewind(0)
    assert s.step_number == 0


def test_rewind_refuses_steps_that_are_not_there(s: Session) -> None:
    s.run(1)
    for step in (-1, 2):
        with pytest.raises(RunFolderError, match=f"step {step}"):
            s.rewind(step)
    assert s.step_number == 1
    assert s.state == "idle"


def test_a_rewind_that_fails_leaves_everything_as_it_was(
    s: Session, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    s.run(4)

    def broken(*args: object) -> None:
        raise OSError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr("workbench.training.trainer.measure", broken)
        with pytest.raises(OSError, match="no memory"):
            s.rewind(3)
    assert s.step_number == 4
    assert same_bits(weights(s), history.weights[4])
    s.run(STEPS - 4)
    assert_same_numbers(s, history.numbers)


def test_resume_after_close_goes_on_as_if_nothing_had_happened(
    s: Session, history: History
) -> None:
    s.run(3)
    s.close()
    assert open_run(s.run_dir).state == "closed"
    with Session.resume(s.run_dir) as again:
        assert (again.state, again.step_number) == ("idle", 3)
        assert same_bits(weights(again), history.weights[3])
        again.run(STEPS - 3)
        assert_same_numbers(again, history.numbers)
        assert same_bits(weights(again), history.weights[STEPS])


_RUN_UNTIL_KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from workbench.config import RunConfig
from workbench.session import Session

config = RunConfig.load(sys.argv[1])
for number, folder in enumerate(map(Path, sys.argv[2:])):
    child = os.fork()
    if child == 0:
        Session(config, folder).run()
    seen = folder / (f"rollouts/step-{number:06d}.parquet" if number else "snapshots/step-000000")
    while not seen.exists():
        time.sleep(0.01)
    time.sleep(0.4 * random.random())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_after_kill_9_at_a_random_moment_the_history_goes_on_unchanged(
    config: RunConfig, history: History, tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text(config.to_toml())
    runs = [tmp_path / f"run{i}" for i in range(3)]
    subprocess.run(
        [sys.executable, "-c", _RUN_UNTIL_KILLED, tmp_path / "config.toml", *runs],
        check=True,
        capture_output=True,
        timeout=600,
        cwd=Path(__file__).parents[1],
    )
    for i, folder in enumerate(runs):
        crashed = open_run(folder)
        assert crashed.state == "crashed"
        last = crashed.last_step()
        assert last >= i - 1  # step i's rollouts were written: it was in flight at the most
        with Session.resume(folder) as s:
            assert s.step_number == last
            s.run(max(1, STEPS - last))
            assert_same_numbers(s, history.numbers)
            assert s.frame("findings").empty


# --- forks --------------------------------------------------------------------------------------


def test_a_fork_without_changes_goes_on_like_its_trunk(
    s: Session, history: History, tmp_path: Path
) -> None:
    s.run(4)
    with s.fork(tmp_path / "fork", step=3) as fork:
        assert fork.step_number == 3
        assert same_bits(weights(fork), history.weights[3])
        fork.run(STEPS - 3)
        assert_same_numbers(fork, history.numbers)
    assert s.step_number == 4
    assert same_bits(weights(s), history.weights[4])
    s.run(STEPS - 4)
    assert_same_numbers(s, history.numbers)


def test_a_fork_with_changes_leaves_its_trunk_alone(
    s: Session, history: History, tmp_path: Path
) -> None:
    s.run(2)
    with s.fork(tmp_path / "fork", base_lr=5e-4, method="grpo", group_size=2) as fork:
        assert (fork.config.get("base_lr"), fork.config.method) == (5e-4, "grpo")
        assert same_bits(copy_of(fork._worker.engine.policy.base), copy_of(base(s)))
        record = fork.step()
        assert record.metrics["base_lr"] == 5e-4
        assert len(record.rollouts) == 8
        assert list(fork.frame("metrics")["base_lr"]) == [1e-3, 1e-3, 5e-4]
    assert (s.config.get("base_lr"), s.config.method) == (1e-3, "bridge")
    s.run(STEPS - 2)
    assert_same_numbers(s, history.numbers)


def base(s: Session) -> dict[str, torch.Tensor]:
    return s._worker.engine.policy.base


def test_a_fork_keeps_its_own_settings_however_far_it_goes(
    config: RunConfig, tmp_path: Path
) -> None:
    """Its first snapshot is where they begin: without it a rewind would go by the trunk's."""
    with Session(config, tmp_path / "trunk") as trunk:
        trunk.run(1)
        with trunk.fork(tmp_path / "fork", base_lr=5e-4) as fork:
            fork.step()
            at_2 = weights(fork)
            fork.run(6)
            fork.rewind(2)
            assert fork.config.get("base_lr") == 5e-4
            assert same_bits(weights(fork), at_2)
            assert "reexecution" not in set(fork.frame("findings")["detector"])
            with pytest.raises(RunFolderError, match="step 0"):
                fork.rewind(0)


def test_a_fork_of_changed_settings_starts_from_those(s: Session, tmp_path: Path) -> None:
    s.run(1)
    s.set(base_lr=7e-4)
    s.run(1)
    with s.fork(tmp_path / "late", step=2, coordinator_lr=3e-3) as fork:
        assert (fork.config.get("base_lr"), fork.config.get("coordinator_lr")) == (7e-4, 3e-3)
    with s.fork(tmp_path / "early", step=0) as fork:
        assert fork.config.get("base_lr") == 1e-3
    with Session.resume(tmp_path / "late") as again:
        assert (again.config.get("base_lr"), again.config.get("coordinator_lr")) == (7e-4, 3e-3)


def test_a_fork_that_cannot_be_leaves_no_folder(s: Session, tmp_path: Path) -> None:
    s.run(1)
    for changes, error in (
        ({"bass_lr": 1.0}, "did you mean 'base_lr'"),
        ({"base_lr": -1.0}, "base_lr"),
        ({"lora_rank": 4}, "lora_rank"),
        ({"kind": "gym"}, "task.terms: no such setting"),
    ):
        with pytest.raises(ConfigError, match=error):
            s.fork(tmp_path / "fork", **changes)
    with pytest.raises(RunFolderError, match="step 5"):
        s.fork(tmp_path / "fork", step=5)
    assert not (tmp_path / "fork").exists()
    with pytest.raises(RunFolderError, match="exists already"):
        s.fork(s.run_dir)
    assert s.step().step == 2


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bass_lr": 1e-4}, "bass_lr: no such setting; did you mean 'base_lr'"),
        ({"name": 1}, "name: no such setting"),
        ({"rl_weight": 1.5}, "rl_weight: .*less than or equal to 1"),
        ({"rl_weight": float("nan")}, "rl_weight"),
        ({"base_lr": "quick"}, "base_lr: .*valid number"),
        ({"group_size": 4}, "group_size: cannot change during a run"),
        ({"seed": 1}, "seed: cannot change during a run"),
        ({"kind": "gym"}, "kind: cannot change during a run"),
        ({"rl_weight": 0.1, "base_lr": -1.0}, "base_lr"),
    ],
)
def test_set_says_what_is_wrong_and_changes_nothing(
    s: Session, config: RunConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        s.set(**changes)
    assert s.config == config
    assert s.state == "idle"


def test_set_holds_from_the_next_step_and_through_rewind_and_resume(s: Session) -> None:
    s.run(2)
    s.set(base_lr=np.float32(5e-4), rl_weight=0.75)
    assert s.config.get("base_lr") == pytest.approx(5e-4)
    s.run(2)
    at_4 = weights(s)
    s.set(rl_weight=0.25)
    s.run(1)
    expected = numbers(s)
    assert list(expected["rl_weight"]) == [0.5, 0.5, 0.75, 0.75, 0.25]
    at_5 = weights(s)
    s.rewind(3)
    assert (s.config.get("base_lr"), s.config.get("rl_weight")) == (pytest.approx(5e-4), 0.75)
    s.run(1)
    assert same_bits(weights(s), at_4)
    s.rewind(1)
    assert (s.config.get("base_lr"), s.config.get("rl_weight")) == (1e-3, 0.5)
    s.run(1)
    s.set(base_lr=np.float32(5e-4), rl_weight=0.75)
    s.run(2)
    s.set(rl_weight=0.25)
    s.close()
    with Session.resume(s.run_dir) as again:
        assert again.config.get("rl_weight") == 0.25
        again.run(1)
        assert same_bits(weights(again), at_5)
        pd.testing.assert_frame_equal(numbers(again), expected, check_exact=True)
        commands = again.frame("commands")
        assert list(commands["step"][commands["name"] == "set"]) == [2, 4, 2, 4]
        assert again.frame("findings").empty


def test_set_during_a_step_waits_for_the_next(s: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        gate = Gate(patch, "trainer.measure")
        s.start(2)
        gate.wait()
        setting = in_thread(lambda: s.set(rl_weight=0.9))
        until(s, lambda: bool(s._worker._queue))
        gate.open()
        setting.join(60)
        assert s.wait(60)
    assert list(s.frame("metrics")["rl_weight"]) == [0.5, 0.9]


# --- pause --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "next_phase", "steps"),
    [
        ("scene.sample", "rewards", 0),
        ("scene.flip", "gradients", 0),
        ("trainer.rl_pass", "probes", 0),
        ("trainer.measure", "update", 0),
        ("trainer.Trainer._update", "", 1),
    ],
    ids=["rollouts", "rewards", "gradients", "probes", "update"],
)
def test_a_pause_waits_for_the_phase_under_way_and_no_longer(
    s: Session, monkeypatch: pytest.MonkeyPatch, held: str, next_phase: str, steps: int
) -> None:
    gate = Gate(monkeypatch, held)
    s.start()
    gate.wait()
    assert s.state == "running"
    pausing = in_thread(s.pause)
    until(s, lambda: s.state == "pausing")
    gate.open()
    pausing.join(60)
    assert (s.state, s.progress.phase, s.step_number) == ("paused", next_phase, steps)


def test_ctrl_c_pauses_a_run(s: Session, history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    s.run(1)  # the interrupt comes in the second step, long after run() began to wait
    with monkeypatch.context() as patch:
        gate = Gate(patch, "trainer.measure")

        def interrupt() -> None:
            gate.wait()
            _thread.interrupt_main()
            until(s, lambda: s.state == "pausing")
            gate.open()

        interrupting = in_thread(interrupt)
        s.run()
        interrupting.join(60)
    assert s.state == "paused"
    assert s.step_number == 1
    s.run(STEPS - 1)
    assert_same_numbers(s, history.numbers)


def test_a_step_that_someone_else_pauses_says_so(
    s: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[BaseException] = []

    def step() -> None:
        try:
            s.step()
        except BaseException as error:
            raised.append(error)

    gate = Gate(monkeypatch, "trainer.measure")
    stepping = in_thread(step)
    gate.wait()
    pausing = in_thread(s.pause)
    until(s, lambda: s.state == "pausing")
    gate.open()
    pausing.join(60)
    stepping.join(60)
    assert [type(error) for error in raised] == [SessionError]
    assert s.step().step == 1  # finishes it


def test_states_and_targets(s: Session) -> None:
    assert s.state == "idle"
    with pytest.raises(SessionError, match="not paused"):
        s.resume()
    for steps in (0, -1):
        with pytest.raises(SessionError, match="at least 1"):
            s.run(steps)
    s.pause()  # nothing runs: nothing happens
    assert s.state == "idle"
    s.start()
    for call in (lambda: s.start(), lambda: s.run(1), lambda: s.step()):
        with pytest.raises(SessionError, match="going already"):
            call()
    with pytest.raises(SessionError, match="pause it first"):
        s.rewind(0)
    with pytest.raises(SessionError, match="pause it first"):
        s.fork(s.run_dir / "fork")
    s.pause()
    assert s.state == "paused"
    s.run(1)
    assert s.state == "idle"
    names = list(s.frame("commands")["name"])
    expected = ["resume", "pause", "start", "start", "run", "step", "rewind", "fork", "pause"]
    assert names == [*expected, "run"]


def test_commands_are_recorded_with_their_outcome(s: Session) -> None:
    s.set(rl_weight=0.6)
    with pytest.raises(ConfigError):
        s.set(rl_weight=7)
    commands = s.frame("commands")
    assert list(commands["arguments"]) == [{"rl_weight": 0.6}, {"rl_weight": 7}]
    assert commands["outcome"][0] == "done"
    assert commands["outcome"][1].startswith("ConfigError: training.rl_weight: Input should be")


# --- faults -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "tensor"),
    [("base", "rl objective"), ("baseline_base", "baseline_rl objective")],
)
def test_a_nan_stops_the_run_with_nothing_lost(
    s: Session, history: History, part: str, tensor: str
) -> None:
    s.run(2)
    poisoned = getattr(s._worker.engine.policy, part)["model.norm.weight"]
    with torch.no_grad():
        poisoned[0] = float("nan")
    before = weights(s)
    with pytest.raises(SessionError, match=f"step 3 was not applied: {tensor} is not finite"):
        s.run(2)
    assert (s.state, s.step_number) == ("paused", 2)
    assert all(torch.equal(a.nan_to_num(), before[n].nan_to_num()) for n, a in weights(s).items())
    finding = s.frame("findings").iloc[0]
    assert finding["severity"] == "critical"
    assert finding["evidence"] == {"phase": "gradients", "tensor": tensor}
    assert "gradients" in finding["message"] and tensor in finding["message"]
    assert s.reader.snapshot_steps() == [0, 2]
    with pytest.raises(SessionError):  # it stays so
        s.step()
    s.rewind(2)
    assert same_bits(weights(s), history.weights[2])
    s.run(STEPS - 2)
    assert_same_numbers(s, history.numbers)


def test_a_full_disk_stops_the_run_and_it_goes_on_from_what_was_recorded(
    s: Session, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    s.run(2)

    def full(record: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(s._worker.engine.store, "append", full)
        with pytest.raises(SessionError, match="No space left"):
            s.run(3)
    assert (s.state, s.step_number) == ("failed", 2)
    s.save()  # must not pass the weights of step 3 off as those of step 2
    s.sample(["1+2=?"])
    assert same_bits(weights(s), history.weights[2])
    s.rewind(2)
    assert same_bits(weights(s), history.weights[2])
    s.run(STEPS - 2)
    assert_same_numbers(s, history.numbers)


def test_a_fault_in_a_step_can_be_survived(
    s: Session, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("workbench.training.trainer.measure", lambda *args: 1 / 0)
        with pytest.raises(SessionError, match="division by zero"):
            s.step()
    assert s.state == "failed"
    assert s.frame("findings")["detector"].tolist() == ["fault"]
    s.run(STEPS)
    assert s.state == "idle"
    assert_same_numbers(s, history.numbers)


# --- folders ------------------------------------------------------------------------------------


def test_a_folder_that_holds_a_run_is_not_overwritten(s: Session, config: RunConfig) -> None:
    with pytest.raises(RunFolderError, match=r"Session\.resume"):
        Session(config, s.run_dir)
    with pytest.raises(RunFolderError, match="in use by process"):
        Session.resume(s.run_dir)
    assert s.step().step == 1


def test_a_run_that_cannot_begin_leaves_its_folder_free(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no"):
        Session(config.with_changes(path="./nowhere"), tmp_path / "run")
    Session(config, tmp_path / "run").close()
    with pytest.raises(RunFolderError, match="no run at"):
        Session.resume(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_export_and_snapshot_are_the_joint_policy(s: Session, tmp_path: Path) -> None:
    disturb(s._worker.engine.policy.coordinator, 0.2, seed=1)
    s.run(1)
    ids = torch.tensor([[1, 40, 41, 50]])

    @torch.no_grad()
    def logits(model: torch.nn.Module) -> torch.Tensor:
        return model(input_ids=ids).logits

    joint = logits(s._worker.engine.policy.model)
    s.export(tmp_path / "exported")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    assert torch.allclose(logits(plain), joint, atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert tokenizer.encode("1\n") == s._worker.engine.policy.encode_prompt("1")
    folder = s.save()
    theta = AutoModelForCausalLM.from_pretrained(folder / "base")
    assert not torch.allclose(logits(theta), joint, atol=1e-4)
    loaded = PeftModel.from_pretrained(theta, str(folder / "coordinator"))
    assert torch.allclose(logits(loaded), joint, atol=1e-4)


def test_after_close_every_call_says_so_and_reading_goes_on(s: Session, tmp_path: Path) -> None:
    s.run(1)
    s.close()
    s.close()
    assert s.state == "closed"
    calls: list[Callable[[], object]] = [
        s.step,
        s.run,
        s.start,
        s.pause,
        s.resume,
        lambda: s.set(rl_weight=0.1),
        lambda: s.rewind(0),
        lambda: s.fork(tmp_path / "fork"),
        s.save,
        lambda: s.export(tmp_path / "export"),
        lambda: s.sample(["1+2=?"]),
        lambda: s.coordinator_effect("1+2=?"),
        s.paired_gain,
        s.evaluate,
    ]
    for call in calls:
        with pytest.raises(SessionError, match="the session is closed"):
            call()
    assert s.wait()
    assert len(s.frame("metrics")) == 1
    assert s.record(1).step == 1
    assert "closed" in repr(s)
    assert not (tmp_path / "fork").exists()


def test_close_during_a_step_loses_that_step_only(
    s: Session, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    s.run(1)
    pause_half_way(s, monkeypatch)
    s.close()
    with Session.resume(s.run_dir) as again:
        assert again.step_number == 1
        again.run(STEPS - 1)
        assert_same_numbers(again, history.numbers)


# --- looking ------------------------------------------------------------------------------------


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


def test_what_is_shown_is_escaped(config: RunConfig, tmp_path: Path) -> None:
    with Session(config, tmp_path / "<img src=x onerror=alert(1)>") as s:
        s.run(1)
        assert "<img" not in s._repr_html_()
        assert "step 1" in repr(s)


def test_a_snapshot_is_plain_json_and_safetensors(s: Session) -> None:
    s.run(2)
    folder = s.run_dir / "snapshots" / "step-000002"
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert names >= {
        "base/model.safetensors",
        "baseline/model.safetensors",
        "coordinator/adapter_model.safetensors",
        "coordinator/adapter_config.json",
        "state.json",
    }
    assert json.loads((folder / "state.json").read_text())["step"] == 2
    assert os.path.commonpath([folder, s.run_dir]) == str(s.run_dir)
