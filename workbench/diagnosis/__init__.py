"""What is wrong with a run, since when, why, and what to change.

    from workbench import open_run
    from workbench.diagnosis import diagnose
    diagnose(open_run("runs/x").frame("metrics")).findings

A finding is `workbench.records.Finding`: `key` is its stable name (detector.kind@step, the step
being the one it was told at), `since` the onset, `suggestion` a dict of settings, named as in the
config, with values to try (None: no value can be told), `causes` and `evidence` say why.
`carriers(finding.detector, rollouts)` names the rollouts of a step to read. On a Session:
`before(finding)` says where the run still was well, `samples_of(finding)` what to read, and
`fork_with(finding)` goes on from there with the suggestion.
"""

from __future__ import annotations

from workbench.diagnosis.carriers import carriers
from workbench.diagnosis.catalogue import DETECTORS, Diagnosis, diagnose, worst_first
from workbench.diagnosis.demonstrations import Judge
from workbench.diagnosis.detector import SEVERITIES, Detector, Skipped, Symptom, Watch
from workbench.diagnosis.history import History
from workbench.diagnosis.signs import signs
from workbench.diagnosis.watching import RunWatch, step_not_finite

__all__ = [
    "DETECTORS",
    "Detector",
    "Diagnosis",
    "History",
    "Judge",
    "RunWatch",
    "SEVERITIES",
    "Skipped",
    "Symptom",
    "Watch",
    "carriers",
    "diagnose",
    "signs",
    "step_not_finite",
    "worst_first",
]
