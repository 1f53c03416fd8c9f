"""Evaluations kept in a folder: one folder each, completions as Parquet, the rest as JSON.

evaluations/step-000060-20260101-120000/summary.json       what was asked, scores, comparisons
evaluations/step-000060-20260101-120000/completions.parquet  a row a completion
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.store.errors import RunFolderError

EVALUATIONS = "evaluations"
_SUMMARY, _COMPLETIONS = "summary.json", "completions.parquet"
_COLUMNS = ("evaluation", "step", "set", "policy", "metric", "value", "low", "high", "n_problems")


def write(folder: Path, name: str, completions: pd.DataFrame, summary: Mapping[str, Any]) -> Path:
    """Keep an evaluation as `folder`/`name`; it appears whole. Returns its folder.

    Raises RunFolderError where it cannot be written.
    """
    path, building = folder / name, folder / f".writing-{name}"
    text = json.dumps(summary, indent=1, ensure_ascii=False)
    try:
        building.mkdir(parents=True)
        if len(completions):
            completions.to_parquet(building / _COMPLETIONS, index=False)
        (building / _SUMMARY).write_text(text, encoding="utf-8")
        return building.rename(path)
    except OSError as error:
        raise RunFolderError(f"cannot write the evaluation {path}: {error.strerror}") from None


def scores(folder: Path) -> pd.DataFrame:
    """The scores of all evaluations of a folder, oldest first; empty where there are none."""
    rows = []
    for path in sorted(folder.glob(f"*/{_SUMMARY}"), key=lambda p: p.stat().st_mtime):
        summary = _summary(path)
        rows += [
            {"evaluation": path.parent.name, "step": summary["step"], **row}
            for row in summary["scores"]
        ]
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def summary(folder: Path, name: str) -> dict[str, Any]:
    """What was asked and found. Raises RunFolderError where there is no such evaluation."""
    return _summary(_of(folder, name) / _SUMMARY)


def completions(folder: Path, name: str) -> pd.DataFrame:
    """A row a completion. Raises RunFolderError where there is no such evaluation."""
    path = _of(folder, name) / _COMPLETIONS
    return pd.read_parquet(path) if path.exists() else pd.DataFrame()


def _of(folder: Path, name: str) -> Path:
    known = sorted(path.parent.name for path in folder.glob(f"*/{_SUMMARY}"))
    if name not in known:
        listed = ", ".join(known) or "none"
        raise RunFolderError(f"{folder} has no evaluation {name!r}; there are: {listed}")
    return folder / name


def _summary(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}") from None
