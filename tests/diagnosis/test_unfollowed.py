"""Weights without per-sample products are told once, from the first step on."""

from __future__ import annotations

import pandas as pd
import pytest

from workbench.diagnosis import diagnose


def frame(share: float) -> pd.DataFrame:
    return pd.DataFrame({"step": [1, 2, 3], "alignment/skipped_share": [share] * 3})


@pytest.mark.parametrize(("share", "severity"), [(0.001, "note"), (0.3, "warning")])
def test_any_share_is_told_and_a_large_one_is_a_warning(share: float, severity: str) -> None:
    found = [f for f in diagnose(frame(share)).findings if f.detector == "unfollowed_weights"]
    assert [(f.severity, f.step, f.since) for f in found] == [(severity, 1, 1)]


def test_nothing_is_told_where_all_weights_are_followed() -> None:
    found = diagnose(frame(0.0)).findings
    assert "unfollowed_weights" not in {f.detector for f in found}
