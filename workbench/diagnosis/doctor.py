"""Examine a run folder, or another program's log, and say what was found: the `doctor` command."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.config import RunConfig
from workbench.diagnosis.catalogue import DETECTORS, Diagnosis, diagnose, worst_first
from workbench.diagnosis.detector import SEVERITIES, Watch
from workbench.diagnosis.logs import TRL_SETTINGS, read_log
from workbench.records import Finding
from workbench.store import DamagedError, Run, RunFolderError, open_run
from workbench.store.folder import DATABASE


@dataclass(frozen=True)
class Report:
    """The outcome of an examination."""

    source: str
    kind: str
    """run or log."""
    diagnosis: Diagnosis

    @property
    def exit_code(self) -> int:
        """0: nothing but notes; 1: warnings; 2: something critical."""
        ranks = [SEVERITIES.index(f.severity) for f in self.diagnosis.findings]
        return max([0, *ranks])

    def as_json(self) -> str:
        """Findings, skipped detectors and the exit code; numbers that JSON lacks as text."""
        report = {
            "source": self.source,
            "kind": self.kind,
            "steps": self.diagnosis.n_steps,
            "exit_code": self.exit_code,
            "findings": [asdict(finding) for finding in self.diagnosis.findings],
            "skipped": [asdict(skipped) for skipped in self.diagnosis.skipped],
        }
        return json.dumps(_plain(report), indent=1, ensure_ascii=False, allow_nan=False)

    def __str__(self) -> str:
        found = Counter(finding.severity for finding in self.diagnosis.findings)
        counts = [f"{found[s]} {s}" for s in reversed(SEVERITIES) if found[s]]
        lines = [
            f"{self.source}: {self.diagnosis.n_steps} steps looked at, "
            + (", ".join(counts) if counts else "nothing found")
        ]
        for finding in self.diagnosis.findings:
            lines += ["", *finding_lines(finding, foreign=self.kind == "log")]
        if self.diagnosis.skipped:
            reasons: dict[str, list[str]] = {}
            for skipped in self.diagnosis.skipped:
                reasons.setdefault(skipped.reason, []).append(skipped.detector)
            listed = "; ".join(f"{', '.join(names)} ({why})" for why, names in reasons.items())
            lines += ["", *textwrap.wrap(f"SKIPPED: {listed}", 100, subsequent_indent="  ")]
        return "\n".join(lines)


def finding_lines(finding: Finding, foreign: bool = False) -> list[str]:
    """A finding as lines of text; `foreign` adds TRL's names of the settings."""
    since = f"since step {finding.since}" if finding.since else f"step {finding.step}"
    if finding.since and finding.since != finding.step:
        since += f", told at {finding.step}"
    lines = [f"{finding.severity.upper()} {finding.detector}, {since}"]
    lines += _wrapped("", finding.message)
    if finding.evidence:
        evidence = ", ".join(f"{k} {_shown(v)}" for k, v in finding.evidence.items())
        lines += _wrapped("evidence: ", evidence)
    if finding.causes:
        lines += _wrapped("likely: ", "; ".join(finding.causes))
    settings = finding.suggestion or ({finding.setting: None} if finding.setting else {})
    if settings:
        changes = []
        for name, value in settings.items():
            called = f" ({TRL_SETTINGS[name]} in TRL)" if foreign and name in TRL_SETTINGS else ""
            changes.append(name + called + ("" if value is None else f" = {_shown(value)}"))
        lines += _wrapped("change: ", ", or ".join(changes))
    if finding.reference:
        lines += _wrapped("after: ", finding.reference)
    return lines


def _wrapped(label: str, text: str) -> list[str]:
    printable = "".join(c if c.isprintable() else "�" for c in text)
    return textwrap.wrap(
        label + printable, 100, initial_indent="  ", subsequent_indent="  " + " " * len(label)
    )


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def examine(path: str | Path) -> Report:
    """Look at a run folder or a log. Raises RunFolderError where there is neither."""
    folder = Path(path)
    if (folder / DATABASE).exists():
        run = open_run(folder)
        return Report(str(path), "run", diagnose_run(run))
    watch = Watch(DETECTORS)
    findings: list[Finding] = []
    names: set[str] = set()
    for step, row in read_log(folder):
        findings += watch.see(step, row, {})
        names |= row.keys()
    if not findings and all(watch.missing(d) for d in watch.detectors if d.needs):
        raise RunFolderError(
            f"{path} holds no metric that a detector knows by its name in TRL, Trainer or verl; "
            f"it holds: {_some(names)}"
        )
    found = Diagnosis(worst_first(findings), watch.skipped(), watch.history.n_rows)
    return Report(str(path), "log", found)


def _some(names: set[str]) -> str:
    shown = ", ".join(name[:40] for name in sorted(names)[:8])
    shown = "".join(c if c.isprintable() else "�" for c in shown)
    return shown + (", …" if len(names) > 8 else "")


def diagnose_run(run: Run) -> Diagnosis:
    """All detectors over a run's live history, whatever its policies are.

    Findings of the workbench itself, e.g. of a step that was not applied, are among them, and
    files that are not what was written; of a run in progress those are not looked at.
    """
    config = run.config.diagnosis

    def rollouts(step: int) -> pd.DataFrame:
        try:
            return run.rollouts(step)
        except DamagedError:  # told below
            return pd.DataFrame()

    found = diagnose(
        run.frame("metrics"),
        rollouts,
        settings_in_force(run),
        warm_up=config.finding_warm_up,
        cooldown=config.finding_cooldown,
    )
    names = set(Finding.__dataclass_fields__)
    keys = {finding.key for finding in found.findings}
    ours = {detector.name for detector in DETECTORS} - {"non_finite"}
    stored = run.frame("findings")
    stored = stored[stored["live"] & ~stored["detector"].isin(ours) & ~stored["key"].isin(keys)]
    told = [
        Finding(**{k: v for k, v in row.items() if k in names}) for row in stored.to_dict("records")
    ]
    told = [f for f in told if f.severity in SEVERITIES]
    said = {finding.message for finding in told}
    damaged = [] if run.holder else [line for line in run.problems() if line not in said]
    last = run.last_step()
    told += [Finding(last, "critical", "run_folder", line, {}, "") for line in damaged]
    return Diagnosis(worst_first([*found.findings, *told]), found.skipped, found.n_steps)


def settings_in_force(run: Run) -> Callable[[int], Mapping[str, Any]]:
    """The run's settings by leaf name at a step, its live changes applied; ask in order.

    Of a fork's trunk the folder holds no settings: the fork's own stand in for them.
    """
    commands = run.frame("commands", history=True)
    own = commands["timeline"] >= run.meta["config_timeline"]
    done = commands[own & commands["live"] & (commands["name"] == "set")]
    done = done[done["outcome"] == "done"]
    changes = [(int(s), a) for s, a in zip(done["step"], done["arguments"], strict=True)]
    config: RunConfig = run.config
    flat, applied = config.flat(), 0

    def at(step: int) -> Mapping[str, Any]:
        nonlocal config, flat, applied
        while applied < len(changes) and changes[applied][0] < step:
            config = config.with_changes(**changes[applied][1])
            flat, applied = config.flat(), applied + 1
        return flat

    return at
