"""The detectors of a run in progress: after each recorded step, what is new."""

from __future__ import annotations

from math import isnan

from workbench.config import DiagnosisConfig, RunConfig
from workbench.diagnosis.catalogue import DETECTORS, rows_of
from workbench.diagnosis.detector import Watch
from workbench.diagnosis.doctor import settings_in_force
from workbench.diagnosis.non_finite import CAUSES, not_finite
from workbench.records import Finding, StepRecord
from workbench.store import Run


class RunWatch:
    """Watches the steps of one run. What it tells is a function of the recorded metrics."""

    def __init__(self, config: DiagnosisConfig) -> None:
        self.config = config
        wanted = [d for d in DETECTORS if self._policy(d.name) != "off"]
        self._watch = Watch(wanted, config.finding_warm_up, config.finding_cooldown)

    @property
    def step(self) -> int:
        """The last step it has seen; 0 before the first."""
        return self._watch.history.step

    def catch_up(self, run: Run, last: int) -> list[Finding]:
        """See the recorded steps up to `last`; returns findings the folder lacks, by a crash say.

        To be called once, before `see`.
        """
        metrics = run.frame("metrics")
        settings = settings_in_force(run)
        told: list[Finding] = []
        for step, row in rows_of(metrics[metrics["step"] <= last]):
            told += self._watch.see(step, row, settings(step))
        stored = run.frame("findings")
        known = set(stored.loc[stored["live"], "key"])
        return [finding for finding in told if finding.key not in known]

    def see(self, record: StepRecord, config: RunConfig) -> list[Finding]:
        """See the step after the last one; returns what is told at it for the first time."""
        row = {name: value for name, value in record.metrics.items() if not isnan(value)}
        return self._watch.see(record.step, row, config.flat())

    def pauses(self, finding: Finding) -> bool:
        """Whether the run is to pause for it: its policy says so, and it is no note."""
        return finding.severity != "note" and self._policy(finding.detector) == "pause"

    def _policy(self, detector: str) -> str:
        return str(getattr(self.config, detector))


def step_not_finite(step: int, phase: str, tensor: str, message: str, config: RunConfig) -> Finding:
    """The finding for a step that was not applied because a number of it was not finite."""
    return Finding(
        step=step,
        severity="critical",
        detector="non_finite",
        message=message,
        evidence={"phase": phase, "tensor": tensor},
        setting="base_lr",
        since=step,
        key=f"non_finite.{phase}@{step}",
        causes=list(CAUSES),
        suggestion=not_finite(config.flat().get),
        reference="[ours]: a step with such a number is never applied",
    )
