"""What a probe costs, against hand arithmetic."""

from __future__ import annotations

from math import isnan, nan

import pandas as pd
import pytest

from workbench.config.sections import ProbesConfig
from workbench.probes.cost import probe_costs
from workbench.records import PROBES

METRICS = pd.DataFrame(
    {
        "step": [1, 2, 3, 4],
        "seconds/total": [9.0, 2.0, 2.0, 4.0],
        "seconds/probe/alignment": [9.0, 0.5, 0.25, 0.25],
        "seconds/probe/paired_gain": [9.0, nan, nan, 2.0],
    }
)


def test_costs_are_of_the_newest_steps_and_the_dearest_comes_first() -> None:
    found = probe_costs(METRICS, ProbesConfig(paired_gain_every=4), last=3)
    assert list(found["probe"][:2]) == ["paired_gain", "alignment"]
    assert set(found["probe"]) == set(PROBES)
    by = found.set_index("probe")
    assert tuple(by.loc["paired_gain", ["when_due", "a_step", "share"]]) == (2.0, 2 / 3, 0.25)
    assert by.loc["alignment", "when_due"] == pytest.approx(1 / 3)
    assert by.loc["alignment", "share"] == pytest.approx(1 / 8)
    assert by.loc["paired_gain", "every"] == 4 and by.loc["coordinator", "a_step"] == 0
    assert isnan(by.loc["coordinator", "when_due"])


@pytest.mark.parametrize("steps", [[], [1, 2]])
def test_a_run_without_timed_probes_has_no_costs(steps: list[int]) -> None:
    metrics = pd.DataFrame({"step": steps, "seconds/total": [1.0] * len(steps)})
    found = probe_costs(metrics, ProbesConfig())
    assert found["share"].isna().all() and found["a_step"].isna().all()
