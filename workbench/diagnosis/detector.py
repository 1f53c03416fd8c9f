"""What a detector is, and how detectors watch a run.

A detector looks at the history up to the newest row and says what is wrong there, if anything. It
sees nothing of the future and keeps no memory, so findings are a function of the history: watching
a run live, going on after a crash, a rewind and reading the finished folder give the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from workbench.config import FaultsConfig
from workbench.diagnosis.history import History
from workbench.records import Finding

Severity = Literal["note", "warning", "critical"]
SEVERITIES: tuple[Severity, ...] = ("note", "warning", "critical")
"""From least to most severe."""

ON_PURPOSE = {"reward_flip", *FaultsConfig.model_fields}
"""Settings that make something go wrong."""

WARM_UP = 8
COOLDOWN = 20


@dataclass(frozen=True)
class Symptom:
    """What a detector sees at the newest row."""

    severity: Severity
    since: int
    """Onset: the first step it can be seen at."""
    message: str
    """One sentence for a person, with the numbers that matter."""
    evidence: Mapping[str, Any]
    """Numbers and texts; what is NaN is left out of the finding."""
    causes: tuple[str, ...] = ()
    """Likely ones, the likeliest first."""
    suggestion: Mapping[str, Any] = field(default_factory=dict)
    """Setting → value to try, named as in the config; None where no value can be told.

    What is so already is left out of the finding."""
    kind: str = ""
    """Tells the symptoms of one detector apart."""


@dataclass(frozen=True)
class Detector:
    """One thing that can go wrong with a run."""

    name: str
    """As in the config's section [diagnosis]."""
    needs: tuple[tuple[str, ...], ...]
    """Metrics it cannot do without; of each tuple one is enough."""
    check: Callable[[History], Iterable[Symptom]]
    reference: str
    """Where its thresholds come from; "[ours]" where they are this project's."""
    at_once: bool = False
    """Looks from the first step on, also during the warm-up."""


@dataclass(frozen=True)
class Skipped:
    """A detector that did not look, and why."""

    detector: str
    reason: str


class Watch:
    """Feeds a run's rows to detectors and tells each trouble once."""

    def __init__(
        self,
        detectors: Iterable[Detector],
        warm_up: int = WARM_UP,
        cooldown: int = COOLDOWN,
    ) -> None:
        """warm_up: rows in which only detectors that look `at_once` do.

        cooldown: rows for which a trouble must have been away to be told once more.
        """
        self.history = History()
        self.detectors = list(detectors)
        self.warm_up, self.cooldown = warm_up, cooldown
        self._told: dict[tuple[str, str], tuple[int, int]] = {}  # → (rank of severity, row seen)
        self.off: dict[str, str] = {}
        """Detectors that failed and look no more, with their errors."""

    def see(
        self, step: int, row: Mapping[str, float], settings: Mapping[str, Any]
    ) -> list[Finding]:
        """Take in a logged step; returns what is told at it for the first time."""
        self.history.settings = settings
        self.history.add(step, row)
        findings = []
        for detector in self.detectors:
            if detector.name in self.off or self.missing(detector):
                continue
            if self.history.n_rows <= self.warm_up and not detector.at_once:
                continue
            try:
                symptoms = list(detector.check(self.history))
            except Exception as error:  # a fault of ours must not stop somebody's run
                findings.append(self._switch_off(detector, error))
            else:
                findings += [
                    self._finding(detector, s) for s in symptoms if self._news(detector, s)
                ]
        return findings

    def missing(self, detector: Detector) -> str:
        """The metric, if any, that a detector waits for in vain so far."""
        for names in detector.needs:
            if not any(name in self.history for name in names):
                return " or ".join(names)
        return ""

    def skipped(self) -> list[Skipped]:
        """The detectors that did not look, as far as the rows go."""
        skipped = []
        for detector in self.detectors:
            if detector.name in self.off:
                skipped.append(Skipped(detector.name, f"failed: {self.off[detector.name]}"))
            elif missing := self.missing(detector):
                skipped.append(Skipped(detector.name, f"no {missing}"))
            elif self.history.n_rows <= self.warm_up and not detector.at_once:
                skipped.append(Skipped(detector.name, f"no more than {self.warm_up} steps"))
        return skipped

    def _news(self, detector: Detector, symptom: Symptom) -> bool:
        """Whether it was not told, not as severe, or has been away for the cooldown."""
        which, row = (detector.name, symptom.kind), self.history.n_rows
        rank = SEVERITIES.index(symptom.severity)
        told, seen = self._told.get(which, (-1, row))
        if row - seen > self.cooldown:
            told = -1
        self._told[which] = (max(rank, told), row)
        return rank > told

    def _finding(self, detector: Detector, symptom: Symptom) -> Finding:
        step = self.history.step
        label = detector.name + (f".{symptom.kind}" if symptom.kind else "")
        suggestion = not_so_yet(self.history.settings, _plain(symptom.suggestion))
        return Finding(
            step=step,
            severity=symptom.severity,
            detector=detector.name,
            message=symptom.message,
            evidence=_plain(symptom.evidence),
            setting=next(iter(suggestion), ""),
            since=symptom.since,
            key=f"{label}@{step}",
            causes=list(symptom.causes),
            suggestion=suggestion,
            reference=detector.reference,
        )

    def _switch_off(self, detector: Detector, error: Exception) -> Finding:
        self.off[detector.name] = f"{type(error).__name__}: {error}"
        step = self.history.step
        return Finding(
            step=step,
            severity="note",
            detector=detector.name,
            message=f"The detector {detector.name} failed and looks no more at this run "
            f"({self.off[detector.name]}). The run is not affected.",
            evidence={"error": self.off[detector.name]},
            setting="",
            since=step,
            key=f"{detector.name}.failed@{step}",
        )


def not_so_yet(settings: Mapping[str, Any], suggestion: dict[str, Any]) -> dict[str, Any]:
    """A suggestion without what is so already, and without what only this workbench has on purpose.

    The latter in logs of other programs, whose settings are not known.
    """
    return {
        name: value
        for name, value in suggestion.items()
        if (name not in settings or settings[name] != value)
        and (name in settings or name not in ON_PURPOSE)
    }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """NumPy's numbers as Python's, NaN left out: JSON has neither."""
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in values.items()}
    return {k: v for k, v in plain.items() if v == v}


def lower(history: History, name: str, by: float) -> dict[str, Any]:
    """The suggestion to divide a setting by `by`, with its value where it is known."""
    value = history.setting(name)
    return {name: rounded(value / by) if value else None}


def higher(history: History, name: str, by: float) -> dict[str, Any]:
    """The suggestion to multiply a setting by `by`, with its value where it is known."""
    value = history.setting(name)
    if not value:
        return {name: None}
    return {name: int(value * by) if isinstance(value, int) else rounded(value * by)}


def rounded(value: float) -> float:
    """Two significant digits: a value to try, not a measurement."""
    return float(f"{value:.2g}")
