"""What each probe costs a run, from its own metrics; no model, no run folder."""

from __future__ import annotations

from math import nan

import pandas as pd

from workbench.config.sections import ProbesConfig
from workbench.records import PROBES

COLUMNS = ("probe", "setting", "every", "when_due", "a_step", "share")
"""Columns of `probe_costs`."""


def probe_costs(metrics: pd.DataFrame, schedule: ProbesConfig, last: int = 20) -> pd.DataFrame:
    """One row a probe, the dearest first, over the newest `last` steps.

    metrics: the frame of that name. Columns:
        probe: as in 'seconds/probe/<probe>'; setting: the one with its schedule.
        every: steps between two, 0: off. As the config has it, whatever the steps shown had.
        when_due: mean seconds of the steps that had it; NaN without one.
        a_step: its seconds over all steps shown, per step.
        share: of those steps' whole time, 0 to 1. All probes' shares and training's add up to 1.
            Both are NaN in a run whose probes were not timed, by a workbench before they were.
    """
    newest = metrics.tail(last)
    whole = newest["seconds/total"].sum() if "seconds/total" in newest else nan
    timed = any(name.startswith("seconds/probe/") for name in newest)
    rows = []
    probes = [(probe, setting, getattr(schedule, setting)) for probe, setting in PROBES.items()]
    for chosen in schedule.evaluation_sets:
        probes.append((f"evaluation/{chosen.label}", "evaluation_sets", chosen.every))
    for probe, setting, every in probes:
        name = f"seconds/probe/{probe}"
        seconds = newest[name].dropna() if name in newest else pd.Series(dtype="float64")
        rows.append(
            (
                probe,
                setting,
                every,
                seconds.mean() if len(seconds) else nan,
                seconds.sum() / len(newest) if timed and len(newest) else nan,
                seconds.sum() / whole if timed and whole > 0 else nan,
            )
        )
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.sort_values("share", ascending=False, kind="stable", ignore_index=True)
