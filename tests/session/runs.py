"""Runs of the same six steps to compare, and a hold on the worker's phases."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from tests.training.tiny import copy_of
from workbench.config import RunConfig
from workbench.session import Session
from workbench.store import Run

STEPS = 6


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
    s.skipped_weights()
    s.check_answers(rollouts=1)
    s.counterfactual(prompt="1+2=?", text="#3", policy="baseline", rollouts=2)
    if s.step_number:
        s.counterfactual(1, 0, coordinator=0.0, snapshot_step=0)
    s.frame("rollouts")
    repr(s), s._repr_html_(), s.progress
