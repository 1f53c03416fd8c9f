"""The detectors of a run in progress: after each recorded step, what is new."""

from __future__ import annotations

from math import isnan

from workbench.config import DiagnosisConfig, Policy, RunConfig
from workbench.diagnosis.catalogue import DETECTORS, rows_of
from workbench.diagnosis.detector import Watch, not_so_yet
from workbench.diagnosis.doctor import settings_in_force
from workbench.diagnosis.non_finite import CAUSES, not_finite
from workbench.records import Finding, StepRecord
from workbench.store import RunStore, open_run


class RunWatch:
    """Watches a run's steps. What it tells is a function of the recorded metrics and settings.

    So nothing of it is kept: where a run was opened or rewound, it looks at the recorded steps
    once more, and tells what the folder lacks, after a crash say.
    """

    def __init__(self, store: RunStore) -> None:
        self.store = store
        self._watch: Watch | None = None

    def after(self, record: StepRecord, config: RunConfig) -> list[Finding]:
        """Store what is found at a step just recorded; returns the findings to pause for."""
        watch, self._watch = self._watch, None  # until all is told: what was not is told later
        late: list[Finding] = []
        if watch is None or watch.history.step != record.step - 1:
            watch, late = self._catch_up(config.diagnosis, record.step - 1)
        row = {name: value for name, value in record.metrics.items() if not isnan(value)}
        new = watch.see(record.step, row, config.flat())
        for finding in (*late, *new):
            self.store.add_finding(finding)
        self._watch = watch
        return [
            finding
            for finding in new
            if finding.severity != "note" and policy(config.diagnosis, finding.detector) == "pause"
        ]

    def open(self, config: RunConfig, last: int) -> None:
        """Store what the recorded steps up to `last` show and the folder lacks.

        A run that was killed between recording a step and telling of it would never tell, where
        that step was its last.
        """
        watch, late = self._catch_up(config.diagnosis, last)
        for finding in late:
            self.store.add_finding(finding)
        self._watch = watch

    def _catch_up(self, config: DiagnosisConfig, last: int) -> tuple[Watch, list[Finding]]:
        wanted = [d for d in DETECTORS if policy(config, d.name) != "off"]
        watch = Watch(wanted, config.finding_warm_up, config.finding_cooldown)
        run = open_run(self.store.path)
        metrics, settings = run.frame("metrics"), settings_in_force(run)
        told: list[Finding] = []
        for step, row in rows_of(metrics[metrics["step"] <= last]):
            told += watch.see(step, row, settings(step))
        stored = run.frame("findings")
        known = set(stored.loc[stored["live"], "key"])
        return watch, [finding for finding in told if finding.key not in known]


def policy(config: DiagnosisConfig, detector: str) -> Policy:
    """What a detector may do: note, pause or off."""
    found: Policy = getattr(config, detector)
    return found


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
        suggestion=not_so_yet(config.flat(), not_finite(config.flat().get)),
        reference="[ours]: a step with such a number is never applied",
    )
