"""The header above the tabs: what this page is, what the run is doing, how far it is."""

from __future__ import annotations

import html
from pathlib import Path

from workbench.session import Session
from workbench.ui.findings import findings_line
from workbench.ui.read_only import ReadOnlySession

INTRODUCTION = (
    "This page trains a language model and shows, while it learns, what demonstrations add to "
    "what reinforcement learning finds alone: θ learns from both, the coordinator w (a LoRA) is "
    "trained so that the two help each other, and θ̂ follows RL only, for comparison. Press "
    "<b>Run</b> and the curves move within seconds; pause, change a setting, rewind or fork "
    "whenever you like."
)


def header_html(session: Session) -> str:
    """Title, state, progress bar and time left, as HTML."""
    config, progress, state = session.config, session.progress, session.state
    endless = progress.target is None
    if progress.target:
        share = min(progress.step / progress.target, 1.0)
    else:
        share = 0.0
    return (
        '<div class="wb-head"><h1>BRIDGE workbench</h1>'
        f'<span class="wb-badge {state}" data-testid="state">{state}</span>'
        f'<span class="what">method <b>{html.escape(config.method)}</b> on '
        f"<b>{html.escape(config.model.path)}</b>, run folder "
        f"<code>{html.escape(folder_name(session.run_dir))}</code></span></div>"
        f'<div class="wb-bar {"endless" if endless else ""} {state}">'
        f'<div style="width:{share:.1%}"></div></div>'
        f'<div class="wb-line" data-testid="progress">{_line(session)}</div>'
        + _read_only(session)
        + findings_line(session.frame("findings"))
        + "".join(
            f'<div class="wb-error">{html.escape(line)}</div>'
            for line in (session.error, session.paused_by)
            if line
        )
    )


def _read_only(session: Session) -> str:
    if not isinstance(session, ReadOnlySession):
        return ""
    said = html.escape(session.why)
    return f'<div class="wb-line" data-testid="read-only"><b>Only read here.</b> {said}</div>'


def folder_name(path: Path) -> str:
    """A folder as a person would name it: relative where it lies below the present one."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _line(session: Session) -> str:
    progress = session.progress
    parts = [f"step {progress.step}"]
    if progress.target is not None:
        parts[0] += f" of {progress.target}"
    if session.state in ("running", "pausing"):
        parts.append(f"step {progress.step + 1}: {progress.phase or 'starting'}")
    if session.state == "running" and progress.eta_seconds is not None:
        parts.append(f"{_duration(progress.eta_seconds)} left")
    if session.state == "paused" and progress.phase:
        parts.append(f"paused before “{progress.phase}” of step {progress.step + 1}")
    if progress.doing:
        parts.append(progress.doing)
    if session.state == "idle" and progress.step == 0:
        parts.append("nothing has run yet")
    return " · ".join(html.escape(part) for part in parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
