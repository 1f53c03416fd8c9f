"""Replay: one step that was executed again, all it showed, and how it differs from another."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from math import isnan, nan
from typing import Any

import numpy as np
import pandas as pd

from workbench.config import RunConfig
from workbench.records import StepRecord

TABLES = ("rollouts", "gain", "demonstrations", "alignment", "coordinator")
"""The tables of a StepRecord."""

LAYERS = (
    "passing",
    "policy",
    "layer",
    "module",
    "activation_rms",
    "activation_max",
    "gradient_norm",
    "gradient_max",
    "nonfinite",
    "tokens",
)
"""Columns of `Replay.layers`: fields of probes.trace.LayerRow."""
UPDATES = ("part", "layer", "update_norm", "weight_norm", "ratio")
"""Columns of `Replay.updates`: fields of probes.trace.UpdateRow."""
DIFFERENCES = ("name", "recorded", "replayed", "difference", "relative", "count")


@dataclass(frozen=True, eq=False)
class Replay:
    """A step executed again in a scratch copy. Made by `Session.replay`; the run is untouched."""

    step: int
    changes: dict[str, Any]
    """Settings that were changed for this step; empty: executed as it was."""
    config: RunConfig
    """What it was executed under."""
    from_snapshot: int
    """The snapshot it was reached from; the steps between were executed again too."""
    record: StepRecord | None
    """What the step measured, with a trace more than the run asked for; None: it was not applied.

    For `differences` the step is executed with the run's own probes, for a trace once more."""
    recorded: StepRecord | None
    """What the run recorded of it; None where it has not made this step (yet)."""
    error: str
    """Why it was not applied; empty where it was."""
    differences: pd.DataFrame
    """Replayed against recorded, the largest first: name, recorded, replayed, difference, relative
    (to the larger of the two), count.

    Of metrics, of the numbers in rows ('rollouts.logprob': the first that differs, and how many
    do) and of weights, where the step has a snapshot. What only one of the two measured is left
    out, and what tells the time."""
    compared: str
    """What was compared, in words."""
    on_the_way: list[int]
    """Steps between the snapshot and this one that gave other numbers than the run recorded."""
    layers: pd.DataFrame
    """With a trace: a row a pass and module (columns LAYERS)."""
    updates: pd.DataFrame
    """With a trace: how far each layer of θ, θ̂ and w moved (columns UPDATES)."""
    tokens: pd.DataFrame
    """With a trace: a row a completion token of the step's rollouts (of its demonstrations, where
    it drew none): what `probes.tokens.token_frame` says and each loss's `…_value` and `…_push`, and
    before and after the update `logprob`, `logprob_after`, their difference `logprob_change`, the
    exact KLs (nats) `kl_update` = KL(after ‖ before), `kl_reference` = KL(before ‖ start) and
    `kl_reference_after`."""

    @property
    def identical(self) -> bool | None:
        """Whether every number compared is equal to the last bit; None: nothing was recorded."""
        if self.recorded is None:
            return None
        return self.record is not None and self.differences.empty and not self.on_the_way

    @property
    def traced(self) -> bool:
        """Whether layers, updates and tokens were recorded."""
        return not self.layers.empty

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The step's metrics, and 'replay/…': means of the KLs over tokens, sizes of updates."""
        found = dict(self.record.metrics) if self.record else {}
        for name in ("kl_update", "kl_reference", "kl_reference_after"):
            if name in self.tokens:
                found[f"replay/{name}"] = float(self.tokens[name].mean())
        for row in self.updates[self.updates["layer"] == "all"].itertuples():
            found[f"replay/{row.part}/update_norm"] = row.update_norm
            found[f"replay/{row.part}/update_ratio"] = row.ratio
        return found

    def frame(self, name: str) -> pd.DataFrame:
        """The rows of rollouts, gain, demonstrations, alignment or coordinator, as of a run."""
        if name not in TABLES:
            raise ValueError(f"no table {name!r}; there are {', '.join(TABLES)}")
        rows = vars(self.record)[name] if self.record else []
        return pd.DataFrame([asdict(row) for row in rows])

    def minus(self, other: Replay) -> Difference:
        """This replay beside another one, the largest difference first."""
        return Difference(
            self,
            other,
            _metric_differences(self.metrics, other.metrics),
            _row_differences(self.layers, other.layers, ["passing", "policy", "module"], _NORMS),
            _row_differences(self.updates, other.updates, ["part", "layer"], _SIZES),
            _token_differences(self.tokens, other.tokens),
        )

    def summary(self) -> list[str]:
        """What a person wants to know, a line each; plain text."""
        changed = ", ".join(f"{name}={value!r}" for name, value in self.changes.items())
        lines = [f"Replay of step {self.step}" + (f" with {changed}" if changed else "")]
        if self.error:
            lines.append(self.error)
        lines.append(self._verdict())
        if self.on_the_way:
            steps = ", ".join(map(str, self.on_the_way))
            lines.append(f"steps on the way that gave other numbers than recorded: {steps}")
        moved = [
            f"{_PARTS[row.part]} {row.update_norm:.3g} ({row.ratio:.2g} of its size)"
            for row in self.updates[self.updates["layer"] == "all"].itertuples()
        ]
        if moved:
            lines.append("the update moved " + ", ".join(moved))
        if "replay/kl_update" in self.metrics:
            kl = {name: self.metrics[f"replay/{name}"] for name in _KLS}
            lines.append(", ".join(f"{_KLS[n]} {v:.3g}" for n, v in kl.items() if not isnan(v)))
        return lines

    def _verdict(self) -> str:
        if self.recorded is None:
            return "the run has not recorded this step: there is nothing to compare with"
        if self.record is None:
            return "the run recorded this step, and here it could not be finished"
        if self.identical:
            return f"identical to the recorded step, to the last bit ({self.compared})"
        said = f"not the recorded step: {len(self.differences)} differences ({self.compared})"
        if not self.changes:
            said += (
                "; sums depend on the number of threads (OMP_NUM_THREADS) and the machine: they "
                "must be those of the run"
            )
        return said

    def __repr__(self) -> str:
        return "\n".join(self.summary())

    def _repr_html_(self) -> str:
        first, *rest = (html.escape(line) for line in self.summary())
        table = html_table(self.differences.head(10)) if len(self.differences) else ""
        return f"<div><b>{first}</b><br>{'<br>'.join(rest)}{table}</div>"


@dataclass(frozen=True, eq=False)
class Difference:
    """Two replays side by side; in each frame the largest relative difference comes first."""

    first: Replay
    second: Replay
    metrics: pd.DataFrame
    """name, first, second, difference (first − second), relative (to the larger of the two)."""
    layers: pd.DataFrame
    """The same for each pass, policy, module and measure."""
    updates: pd.DataFrame
    """The same for each part, layer and measure."""
    tokens: pd.DataFrame
    """sequence, position, token, other_token; parted: here the texts part, nothing later of that
    text is compared, and such rows come first; first and second, the log-probs after the update;
    difference; kl_first and kl_second, the update's KL there."""

    def __repr__(self) -> str:
        head = f"{self.first.summary()[0]} − {self.second.summary()[0]}"
        return f"{head}\n{self.metrics.head(12).to_string(index=False)}"

    def _repr_html_(self) -> str:
        head = f"{self.first.summary()[0]} − {self.second.summary()[0]}"
        return f"<div><b>{html.escape(head)}</b>{html_table(self.metrics.head(12))}</div>"


_PARTS = {"base": "θ by", "baseline": "θ̂ by", "coordinator": "w by"}
_KLS = {
    "kl_update": "KL(after ‖ before)",
    "kl_reference": "KL to the start: before",
    "kl_reference_after": "after",
}
_NORMS = ("activation_rms", "activation_max", "gradient_norm", "gradient_max", "nonfinite")
_SIZES = ("update_norm", "weight_norm", "ratio")


def html_table(frame: pd.DataFrame) -> str:
    """A small frame as an HTML table; every text is escaped."""
    return frame.to_html(index=False, escape=True, float_format=lambda v: f"{v:.6g}", border=0)


# --- comparing ----------------------------------------------------------------------------------


def _relative(first: float, second: float) -> float:
    """|difference| over the larger of the two sizes; 0 for two zeros."""
    size = max(abs(first), abs(second))
    return abs(first - second) / size if size else 0.0


def _sorted(frame: pd.DataFrame) -> pd.DataFrame:
    """The largest first; a difference that is not a number is the largest."""
    order = frame["relative"].fillna(np.inf).sort_values(ascending=False, kind="stable").index
    return frame.loc[order].reset_index(drop=True)


def compare_records(recorded: StepRecord, replayed: StepRecord) -> tuple[list[list[Any]], str]:
    """Rows of DIFFERENCES for two records of one step, and what was compared in words."""
    rows: list[list[Any]] = []
    n_metrics = n_values = 0
    for name, now in replayed.metrics.items():
        then = recorded.metrics.get(name)
        if then is None or name.startswith("seconds/"):
            continue
        n_metrics += 1
        if not _equal(then, now):
            rows.append([name, then, now, now - then, _relative(now, then), 1])
    for table in TABLES:
        then_rows, now_rows = vars(recorded)[table], vars(replayed)[table]
        if not then_rows or not now_rows:
            continue
        if len(then_rows) != len(now_rows):
            n, m = len(then_rows), len(now_rows)
            rows.append([f"{table} (rows)", n, m, m - n, _relative(n, m), 1])
            continue
        for column in fields(then_rows[0]):
            different, compared = _differing(then_rows, now_rows, column.name)
            n_values += compared
            if different:
                a, b = different[0]
                name = f"{table}.{column.name}"
                rows.append([name, a, b, b - a, _relative(a, b), len(different)])
    return rows, f"{n_metrics} metrics and {n_values} numbers of its rows"


def _differing(
    then_rows: list[Any], now_rows: list[Any], name: str
) -> tuple[list[tuple[float, float]], int]:
    """The pairs of a column that differ, and how many were compared."""
    different, compared = [], 0
    for then, now in zip(then_rows, now_rows, strict=True):
        for a, b in _pairs(getattr(then, name), getattr(now, name)):
            compared += 1
            if not _equal(a, b):
                different.append((a, b))
    return different, compared


def _pairs(a: Any, b: Any) -> list[tuple[float, float]]:
    """The numbers of two cells, in pairs; none where either was not measured or is text."""
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        unmeasured = isnan(a) or isnan(b)
        return [] if unmeasured else [(float(a), float(b))]
    if isinstance(a, list) and isinstance(b, list) and a and b and not isinstance(a[0], str):
        if len(a) != len(b):
            return [(float(len(a)), float(len(b)))]
        return [(float(x), float(y)) for x, y in zip(a, b, strict=True)]
    return []


def _equal(a: float, b: float) -> bool:
    return a == b or (isnan(a) and isnan(b))


def as_differences(rows: list[list[Any]]) -> pd.DataFrame:
    """Rows of DIFFERENCES as a frame, the largest first."""
    frame = pd.DataFrame(rows, columns=list(DIFFERENCES))
    return _sorted(frame.astype({name: float for name in DIFFERENCES[1:5]}))


def _metric_differences(first: Mapping[str, float], second: Mapping[str, float]) -> pd.DataFrame:
    rows = [
        (name, value, second[name], value - second[name], _relative(value, second[name]))
        for name, value in first.items()
        if name in second and not name.startswith("seconds/")
    ]
    columns = ["name", "first", "second", "difference", "relative"]
    return _sorted(pd.DataFrame(rows, columns=columns))


def _row_differences(
    first: pd.DataFrame, second: pd.DataFrame, keys: list[str], measures: tuple[str, ...]
) -> pd.DataFrame:
    """Every measure of rows with equal keys, in long form."""

    def long(frame: pd.DataFrame, name: str) -> pd.DataFrame:
        return frame.melt(keys, list(measures), "measure", name)

    both = long(first, "first").merge(long(second, "second"), on=[*keys, "measure"])
    both = both.dropna(subset=["first", "second"])
    both["difference"] = both["first"] - both["second"]
    both["relative"] = [_relative(a, b) for a, b in zip(both["first"], both["second"], strict=True)]
    return _sorted(both)


def _token_differences(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    columns = ["sequence", "position", "token", "other_token", "parted", "first", "second"]
    columns += ["difference", "kl_first", "kl_second"]
    if first.empty or second.empty:
        return pd.DataFrame(columns=columns)
    rows = []
    others = dict(list(second.groupby("sequence")))
    for sequence, tokens in first.groupby("sequence"):
        if sequence not in others:
            continue
        pairs = zip(tokens.itertuples(), others[sequence].itertuples(), strict=False)
        for a, b in pairs:
            where = (sequence, a.position, a.token, b.token)
            if a.token_id != b.token_id:
                rows.append((*where, True, nan, nan, nan, nan, nan))
                break
            change = a.logprob_after - b.logprob_after
            now, then = a.logprob_after, b.logprob_after
            rows.append((*where, False, now, then, change, a.kl_update, b.kl_update))
    frame = pd.DataFrame(rows, columns=columns)
    size = frame["difference"].abs().where(~frame["parted"], np.inf)
    return frame.loc[size.sort_values(ascending=False, kind="stable").index].reset_index(drop=True)
