"""Two replays side by side."""

from __future__ import annotations

import pytest

from workbench import Session
from workbench.replay import Replay


def test_two_replays_side_by_side_the_largest_difference_first(s: Session, traced: Replay) -> None:
    same = traced.minus(s.replay(5, trace=True))
    for frame in (same.metrics, same.layers, same.updates):
        assert len(frame) > 5 and (frame["difference"] == 0).all()
    assert (same.tokens["difference"] == 0).all() and not same.tokens["parted"].any()
    other = s.replay(5, trace=True, base_lr=2e-3)
    found = traced.minus(other)
    for frame in (found.metrics, found.layers, found.updates):
        assert frame["relative"].is_monotonic_decreasing
        assert list(frame["first"] - frame["second"]) == list(frame["difference"])
    rates = found.metrics.set_index("name")
    assert rates.loc["base_lr", "relative"] == pytest.approx(0.5)
    assert (found.layers["difference"] == 0).all()  # gradients are those of the same weights
    moved = found.updates[found.updates["measure"] == "update_norm"].set_index(["part", "layer"])
    assert moved.loc[("base", "all"), "relative"] == pytest.approx(0.5, rel=1e-3)
    assert moved.loc[("coordinator", "all"), "difference"] == 0
    assert (found.tokens["difference"].abs().diff().dropna() <= 0).all()
    assert "base_lr=0.002" in repr(found) and "<table" in found._repr_html_()


def test_texts_that_part_come_first_and_end_there(s: Session, traced: Replay) -> None:
    seeded = s.replay(5, trace=True, seed=9)
    found = traced.minus(seeded).tokens
    parted = found[found["parted"]]
    assert len(parted) > 0
    assert found["parted"].iloc[: len(parted)].all()
    other = seeded.tokens.set_index(["sequence", "position"])["token_id"]
    mine = traced.tokens.set_index(["sequence", "position"])["token_id"]
    for row in parted.itertuples():
        until = [(row.sequence, at) for at in range(row.position)]
        assert list(mine[until]) == list(other[until])
        assert mine[row.sequence, row.position] != other[row.sequence, row.position]
        rest = found[(found["sequence"] == row.sequence) & ~found["parted"]]
        assert (rest["position"] < row.position).all()


def test_what_is_shown_is_escaped(s: Session, traced: Replay) -> None:
    hostile = "<img src=x onerror=1>"
    found = Replay(**{**vars_of(traced), "changes": {"system_prompt": hostile}, "error": hostile})
    shown = found._repr_html_() + found.minus(traced)._repr_html_()
    assert hostile not in shown and "&lt;img" in shown
    assert "identical to the recorded step, to the last bit" in traced._repr_html_()


def vars_of(found: Replay) -> dict:
    return {name: getattr(found, name) for name in Replay.__dataclass_fields__}
