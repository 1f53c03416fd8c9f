"""Runs beside each other: settings that differ, metrics, prompts; read from their folders alone."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan, sqrt
from pathlib import Path

import pandas as pd

from workbench.store import Run, RunFolderError, open_run
from workbench.tasks.environment import ENVIRONMENT, POLICY

NEWEST = 10
"""Steps, from the end, whose rollouts are compared prompt by prompt."""


def runs_in(folder: Path) -> list[Run]:
    """The runs in a folder and in its folders, by path; what cannot be read is left out."""
    found = []
    for database in sorted([*folder.glob("*/run.sqlite"), *folder.glob("*/*/run.sqlite")]):
        try:
            found.append(open_run(database.parent))
        except RunFolderError:  # being made or deleted at this moment
            continue
    return found


def config_differences(runs: Sequence[Run]) -> pd.DataFrame:
    """Settings that are not the same in all runs: column 'setting', then one a run, as text."""
    flats = [run.config.flat() for run in runs]
    names = dict.fromkeys(name for flat in flats for name in flat)
    rows = [
        [name, *values]
        for name in names
        if len(set(values := [str(flat.get(name, "–")) for flat in flats])) > 1
    ]
    return pd.DataFrame(rows, columns=["setting", *(str(i) for i in range(len(runs)))])


def metric_names(runs: Sequence[Run]) -> list[str]:
    """Metrics that any of the runs has."""
    return sorted({name for run in runs for name in run.metric_names()})


def newest_rollouts(run: Run, n_steps: int = NEWEST) -> pd.DataFrame:
    """The joint policy's rollouts of the last steps, but for those that had help."""
    last = run.last_step()
    frames = [run.rollouts(step) for step in range(max(1, last - n_steps + 1), last + 1)]
    if not frames:
        return pd.DataFrame(columns=["prompt_id", "prompt", "correct", "purpose", "completion"])
    rows = pd.concat(frames, ignore_index=True)
    alone = rows["written_by"].map(lambda writers: set(writers) <= {POLICY, ENVIRONMENT})
    return rows[(rows["policy"] == "joint") & alone]


def prompt_gain(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """First run minus second, prompt by prompt; from `newest_rollouts` of each.

    Columns: prompt_id, prompt, first, second (mean reward), gain, standard_error, n_first,
    n_second; only prompts with equal texts that both have, the largest differences first.
    """
    keys = ["prompt_id", "prompt"]
    sides = [
        rows.groupby(keys)["correct"].agg(["mean", "var", "size"]).reset_index()
        for rows in (first, second)
    ]
    both = sides[0].merge(sides[1], on=keys, suffixes=("_first", "_second"))
    rows = [
        {
            "prompt_id": row.prompt_id,
            "prompt": row.prompt,
            "first": row.mean_first,
            "second": row.mean_second,
            "gain": row.mean_first - row.mean_second,
            "standard_error": sqrt(
                row.var_first / row.size_first + row.var_second / row.size_second
            )
            if min(row.size_first, row.size_second) > 1
            else nan,
            "n_first": float(row.size_first),
            "n_second": float(row.size_second),
        }
        for row in both.itertuples()
    ]
    columns = [*keys, "first", "second", "gain", "standard_error", "n_first", "n_second"]
    frame = pd.DataFrame(rows, columns=columns)
    order = frame["gain"].abs().sort_values(ascending=False, kind="stable").index
    return frame.loc[order].reset_index(drop=True)
