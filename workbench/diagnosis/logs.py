"""Training logs of other programs as a metrics frame, their names put into ours.

TRL's names are ours already. A value that was logged as NaN stays one here: it is a finding.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from workbench.store import RunFolderError

STEP_NAMES = (
    "step",
    "global_step",
    "train/global_step",
    "training/global_step",
    "_step",
    "iteration",
    "Step",
)
LARGEST = 256 * 2**20
"""Bytes of a log that is read."""

NAMES: dict[str, str] = {
    # Trainer and TRL
    "eval_accuracy": "eval/accuracy",
    "eval/mean_token_accuracy": "eval/mean_token_accuracy",
    "step_time": "seconds/step",
    "clip_ratio": "clip_ratio/region_mean",
    "completion_length": "completions/mean_length",
    # verl, its metric_utils and actor workers
    "actor/entropy": "entropy",
    "actor/entropy_loss": "entropy",
    "actor/grad_norm": "grad_norm",
    "actor/kl_loss": "kl",
    "actor/lr": "learning_rate",
    "actor/pg_loss": "loss/rl",
    "actor/pg_clipfrac": "clip_ratio/region_mean",
    "critic/rewards/mean": "reward",
    "critic/score/mean": "reward",
    "response_length/mean": "completions/mean_length",
    "response_length/max": "completions/max_length",
    "response_length/clip_ratio": "completions/clipped_ratio",
    "rollout_corr/log_ppl_abs_diff": "sampling/sampling_logp_difference/mean",
    "rollout_corr/rollout_is_mean": "sampling/importance_sampling_ratio/mean",
    "timing_s/gen": "seconds/rollouts",
    "timing_s/reward": "seconds/rewards",
    "timing_s/update_actor": "seconds/update",
    "timing_s/step": "seconds/step",
    # common
    "reward/mean": "reward",
    "rewards/mean": "reward",
    "train/reward": "reward",
    "train/entropy": "entropy",
    "train/kl": "kl",
    "train/loss": "loss",
    "train/grad_norm": "grad_norm",
    "lr": "learning_rate",
    "objective/kl": "kl",
    "objective/entropy": "entropy",
}
"""Names of other programs → ours. verl's actor/ppo_kl is left out: it is not to a reference."""

_PATTERNS = (
    (re.compile(r"val-core/.*/acc/.*|val/test_score/.*"), "eval/accuracy"),  # verl
    (re.compile(r"eval[_/](?:.*/)?(?:accuracy|acc)"), "eval/accuracy"),
)

TRL_SETTINGS = {
    "base_lr": "learning_rate",
    "kl_coef": "beta",
    "clip_range": "epsilon",
    "group_size": "num_generations",
    "max_new_tokens": "max_completion_length",
}
"""Our settings → TRL's, where they are called otherwise."""


def read_log(path: Path) -> list[tuple[int, dict[str, float]]]:
    """(step, values by our names) of a log, by step; rows of one step are joined.

    path: a trainer_state.json, or a folder that has one; a JSON list of dicts or an object with a
    log_history; JSON lines; or a CSV with a header. Raises RunFolderError, in one line.
    """
    file = path / "trainer_state.json" if path.is_dir() else path
    if not file.is_file():
        raise RunFolderError(
            f"{path} is neither a run folder nor a log; give a run folder, a trainer_state.json, a "
            "checkpoint folder, a JSON or JSON-lines log, or a CSV"
        )
    if file.stat().st_size > LARGEST:
        raise RunFolderError(f"{file} is larger than {LARGEST >> 20} MiB; cut it down first")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise RunFolderError(f"{file} is no log: it is not UTF-8 text") from None
    except OSError as error:
        raise RunFolderError(f"{file} cannot be read: {error.strerror}") from None
    reader = _read_csv if file.suffix.lower() in (".csv", ".tsv") else _read_json
    rows = _joined(reader(file, text))
    if not any(values for _, values in rows):
        raise RunFolderError(f"{file} holds no metrics")
    return rows


def _read_csv(file: Path, text: str) -> list[Mapping[str, Any]]:
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    try:
        return list(csv.DictReader(text.splitlines(), delimiter=delimiter))
    except csv.Error as error:
        raise RunFolderError(f"{file} is no CSV: {error}") from None


def _read_json(file: Path, text: str) -> list[Mapping[str, Any]]:
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        try:
            content = [json.loads(line) for line in text.splitlines() if line.strip()]
        except (json.JSONDecodeError, RecursionError) as error:
            raise RunFolderError(f"{file} is neither JSON nor JSON lines: {error}") from None
    if isinstance(content, dict):
        content = content.get("log_history")
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise RunFolderError(f"{file} holds no log_history: no list of rows with names and values")
    return content


def _joined(rows: Iterable[Mapping[str, Any]]) -> list[tuple[int, dict[str, float]]]:
    joined: dict[int, dict[str, float]] = {}
    for number, row in enumerate(rows, start=1):
        step = next((s for name in STEP_NAMES if (s := _number(row.get(name))) is not None), None)
        at = number if step is None or not isfinite(step) else int(step)
        into = joined.setdefault(at, {})
        for name, value in row.items():
            measured = _number(value)
            if isinstance(name, str) and name not in STEP_NAMES and measured is not None:
                into.setdefault(our_name(name), measured)
    return sorted(joined.items())


def _number(value: object) -> float | None:
    """A logged number, also one written as text; None for what is no number, or empty."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def our_name(name: str) -> str:
    """Our name of another program's metric; its own where we have none."""
    name = name.rpartition(" - ")[2]  # a chart that was exported from W&B has "run - metric"
    if name in NAMES:
        return NAMES[name]
    for pattern, ours in _PATTERNS:
        if pattern.fullmatch(name):
            return ours
    return name
