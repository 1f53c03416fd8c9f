"""Findings on the page: a list that opens, a line for the header."""

from __future__ import annotations

import html
from collections import Counter

import pandas as pd

from workbench.diagnosis import SEVERITIES
from workbench.ui.parts import quiet

MOST = 40


def findings_html(findings: pd.DataFrame) -> str:
    """What the run wants a person to know, the worst first; a click shows why.

    `findings`: frame "findings". Those that a rewind took back come last.
    """
    if findings.empty:
        return quiet("Nothing looks wrong so far.")
    rank = {severity: i for i, severity in enumerate(SEVERITIES)}
    order = findings.assign(
        rank=[rank.get(s, 0) for s in findings["severity"]],
        onset=findings["since"].where(findings["since"] > 0, findings["step"]),
    ).sort_values(["live", "rank", "onset"], ascending=[False, False, True], kind="stable")
    items = [_item(row) for row in order.head(MOST).to_dict("records")]
    more = len(order) - len(items)
    rest = quiet(f"and {more} more: see the frame “findings”") if more > 0 else ""
    return f'<ul class="wb-findings">{"".join(items)}</ul>{rest}'


def _item(row: dict[str, object]) -> str:
    past = "" if row["live"] else ", before a rewind"
    about = f"{row['severity']}, {row['detector']}, since step {row['onset']}{past}"
    details = ""
    evidence = row["evidence"]
    if isinstance(evidence, dict) and evidence:
        shown = ", ".join(f"{_text(name)} {_shown(value)}" for name, value in evidence.items())
        details += f"<p><b>Evidence</b> {shown}</p>"
    causes = row["causes"]
    if isinstance(causes, list) and causes:
        details += f"<p><b>Likely</b> {_text('; '.join(map(str, causes)))}</p>"
    suggestion = row["suggestion"]
    if not (isinstance(suggestion, dict) and suggestion):
        suggestion = {row["setting"]: None} if row["setting"] else {}
    if suggestion:
        changes = ", or ".join(
            f"<code>{_text(name)}{'' if value is None else f' = {_shown(value)}'}</code>"
            for name, value in suggestion.items()
        )
        details += f"<p><b>Change</b> {changes}</p>"
    if row["reference"]:
        details += f"<p><b>After</b> {_text(row['reference'])}</p>"
    return (
        f'<li class="{_text(row["severity"])}" data-key="{_text(row["key"])}"><details><summary>'
        f"{_text(row['message'])}<small>{_text(about)}</small></summary>{details}</details></li>"
    )


def findings_line(findings: pd.DataFrame) -> str:
    """How many warnings and critical findings hold, for the header; empty where none does."""
    live = findings[findings["live"]]
    counts = Counter(live["severity"])
    told = [f"{counts[s]} {s}" for s in ("critical", "warning") if counts[s]]
    if not told:
        return ""
    worst = "critical" if counts["critical"] else "warning"
    first = live[live["severity"] == worst].iloc[0]
    return (
        f'<div class="wb-found {worst}" data-testid="found">{_text(", ".join(told))}: '
        f"{_text(first['message'])}</div>"
    )


def _shown(value: object) -> str:
    return _text(f"{value:.4g}" if isinstance(value, float) else value)


def _text(value: object) -> str:
    return html.escape(str(value))
