"""A step that fails: nothing is lost, and the run goes on."""

from __future__ import annotations

import pytest
import torch

from tests.session.runs import STEPS, History, assert_same_numbers, weights
from tests.training.tiny import same_bits
from workbench.session import Session
from workbench.worker import SessionError


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
