"""What a Session can do about its past: execute a step again, and go on from a finding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from workbench.commands import SessionError, plain
from workbench.diagnosis import carriers
from workbench.records import Finding
from workbench.replay import Replay
from workbench.replaying import OnTheWay, replay
from workbench.store import Run
from workbench.worker import Worker

AnyFinding = Finding | Mapping[str, Any] | str
"""A Finding, its row of the frame "findings", or its key."""

MOST_ROLLOUTS = MOST_DEMONSTRATIONS = 8


@dataclass(frozen=True)
class Before:
    """Where a run still was well."""

    step: int
    """Rewind to its end, or fork from it; see `Engine.before`."""
    snapshot_step: int
    """The snapshot from which it is reached."""


@dataclass(frozen=True, eq=False)
class Samples:
    """What to read about a finding first, the clearest on top."""

    step: int
    """The step they were drawn at: the onset, or the last one recorded before it."""
    rollouts: pd.DataFrame
    """Training rollouts that carry it (workbench/diagnosis/carriers.py), as `Run.rollouts`; where
    none stands out those that the starting policy finds least likely."""
    demonstrations: pd.DataFrame
    """The step's demonstrations that push most against RL; by loss where that was not measured."""


class Travelling:
    """A Session's travels in time that leave the run alone."""

    _worker: Worker
    reader: Run

    def replay(
        self,
        step: int | None = None,
        trace: bool = False,
        progress: OnTheWay | None = None,
        **changes: Any,
    ) -> Replay:
        """Execute a step again in a scratch copy, to the last bit: s.replay(137, trace=True).

        The nearest snapshot is loaded and executed again up to there. `trace` also records what
        happens inside: activations and gradients by layer, every token's terms, each sample's
        gradient products, each layer's update, KL before and after (see `Replay`). `changes` ask
        "what if": s.replay(137, rl_weight=0.9); any setting but the model's. step: default the
        last; the one after it is what the run would do next. progress: called with each step that
        is begun and the last one. Ctrl-C or a pause breaks it off.

        Changes nothing in the run. Raises RunFolderError where there is no such step, ConfigError
        where the changes cannot be made.
        """
        engine, worker, settings = self._worker.engine, self._worker, plain(changes)

        def look() -> Replay:
            number = engine.step_number if step is None else int(step)
            return replay(
                engine,
                number,
                trace=trace,
                changes=settings,
                again=worker.again,
                progress=progress,
            )

        return worker.post("replay", "look", look)

    def before(self, finding: AnyFinding) -> Before:
        """The step and the snapshot before a finding's onset.

        Raises SessionError where there is no such finding.
        """
        found = self.finding(finding)
        engine = self._worker.engine
        first = engine.first_step
        step = min(engine.before(_onset(found)), self.reader.last_step())
        kept = [s for s in self.reader.snapshot_steps() if first <= s <= step]
        return Before(step, max(kept, default=first))

    def samples_of(self, finding: AnyFinding) -> Samples:
        """The rollouts and demonstrations that carry a finding, at its onset.

        Raises SessionError where there is no such finding, or no step was recorded.
        """
        found = self.finding(finding)
        step = min(_onset(found), self.reader.last_step())
        if step < 1:
            raise SessionError("samples_of: no step has been recorded yet")
        rollouts = self.reader.rollouts(step)
        mine = rollouts[rollouts["purpose"] == "train"].set_index("sequence", drop=False)
        sequences = carriers(found.detector, rollouts) or _strangest(mine)
        shown = pd.DataFrame(self.reader.record(step).demonstrations)
        if not shown.empty:
            measured = shown["rl_cosine"].notna().any()
            by, rising = ("rl_cosine", True) if measured else ("loss", False)
            shown = shown.sort_values(by, ascending=rising, kind="stable")
        return Samples(
            step,
            mine.loc[sequences].reset_index(drop=True),
            shown.head(MOST_DEMONSTRATIONS).reset_index(drop=True),
        )

    def finding(self, finding: AnyFinding) -> Finding:
        """A finding by its key, by its row of the frame, or as it is.

        Raises SessionError where there is no such key.
        """
        if isinstance(finding, Finding):
            return finding
        row: Mapping[str, Any]
        if isinstance(finding, str):
            frame = self.reader.frame("findings")
            rows = frame[frame["key"] == finding]
            if not finding or rows.empty:
                known = ", ".join(key for key in frame["key"] if key) or "none"
                raise SessionError(f"no finding {finding!r}; there are: {known}")
            row = rows.iloc[-1]
        else:
            row = finding
        values = {field.name: row[field.name] for field in fields(Finding)}
        return Finding(**values | {name: int(values[name]) for name in ("step", "since")})


def settings_of(finding: Finding, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What a fork that answers a finding changes: its suggestion, and `changes` over it.

    Raises SessionError where that is nothing.
    """
    told = {name: value for name, value in finding.suggestion.items() if value is not None}
    settings = {**told, **changes}
    if not settings:
        names = [*finding.suggestion] or [finding.setting or "base_lr"]
        raise SessionError(
            f"fork_with: {finding.detector} suggests no value; give one, e.g. {names[0]}=…"
        )
    return settings


def _strangest(rollouts: pd.DataFrame) -> list[int]:
    """Where no rollout stands out: those the starting policy finds least likely, token by token."""
    likely = {
        row.sequence: float(np.mean(known))
        for row in rollouts.itertuples()
        if len(known := row.reference_logprob if len(row.reference_logprob) else row.logprob)
    }
    return sorted(likely, key=lambda sequence: likely[sequence])[:MOST_ROLLOUTS]


def _onset(finding: Finding) -> int:
    return finding.since or finding.step
