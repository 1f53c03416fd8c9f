"""The tree that a run, its forks and its rewinds make, and each branch's own steps.

A branch is what one run did without going back: a fork begins one, and so does each rewind. The
steps before its first one are its parent's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.store import schema
from workbench.store.errors import RunFolderError
from workbench.store.folder import DATABASE, connect_for_reading, reading
from workbench.store.reader import Run, open_run

CHANGES = ("set", "set_aside", "take_back")


@dataclass(frozen=True)
class Branch:
    """A row of `run_tree`."""

    node: str
    """The run's name, with '↶2' for what came after its second rewind."""
    parent: str
    """The branch it grew from; empty: it began with a model, or its trunk is not there."""
    from_step: int
    """The parent's step at whose end it began."""
    to_step: int
    """Its last step; `from_step` where it made none."""
    changes: str
    """Settings that differ from the parent's, e.g. 'rl_weight=0.9, from step 12: base_lr=1e-5'."""
    reward: float
    """The last mean training reward it measured; NaN: none."""
    accuracy: float
    """The last greedy accuracy on the validation split (eval/accuracy)."""
    state: str
    """superseded: the run was rewound and went on elsewhere; else the run's state."""
    run: str
    """The run's folder."""
    timeline: int
    """As in `Run.frame(…, history=True)`."""


def run_tree(folder: str | Path) -> pd.DataFrame:
    """The branches of a run, of its forks, theirs, and what it was forked from; a row each.

    `folder`: a run's folder, or one with several runs in it. Forks are found beside it. Columns:
    the fields of Branch; parents come before their children. Raises RunFolderError where there is
    no run.
    """
    rows = [astuple(branch) for run in family(folder) for branch in _branches(*run)]
    frame = pd.DataFrame(rows, columns=[field.name for field in fields(Branch)])
    return frame.reset_index(drop=True)


def branch_metrics(folder: str | Path, only: Sequence[str] | None = None) -> pd.DataFrame:
    """The metrics of every branch of `run_tree`, each step once: `node` first, then as `metrics`.

    A branch has its own steps only; those before are its parent's. `only`: as in `Run.frame`.
    """
    frames = []
    for run in family(folder):
        metrics = run[0].frame("metrics", history=True, only=only)
        for branch in _branches(*run):
            own = metrics[metrics["timeline"] == branch.timeline]
            frames.append(own.drop(columns=["timeline", "live"]).assign(node=branch.node))
    together = pd.concat(frames, ignore_index=True)
    return together[["node", *(name for name in together if name != "node")]]


def family(folder: str | Path) -> list[tuple[Run, Run | None]]:
    """The runs that belong together, each with the run it was forked from; trunks first.

    Raises RunFolderError where there is no run.
    """
    path = Path(folder).resolve()
    alone = not (path / DATABASE).exists()
    runs = dict(_runs_in(path if alone else path.parent))
    if not runs:
        raise RunFolderError(f"no run at {folder}, and none in it")
    trunks = {name: _trunk(run, runs) for name, run in runs.items()}
    wanted = set(runs)
    if not alone:
        wanted = {path}
        while True:  # whoever is a trunk or a fork of one of them
            more = {n for n, t in trunks.items() if t in wanted}
            more |= {t for n in wanted if (t := trunks[n]) is not None}
            if more <= wanted:
                break
            wanted |= more
    ordered: list[Path] = []
    rest = sorted(wanted, key=lambda name: runs[name].meta["created"])
    while rest:
        ready = [n for n in rest if trunks[n] is None or trunks[n] in ordered]
        ordered += ready or rest
        rest = [n for n in rest if n not in ordered]
    return [(runs[n], runs[t] if (t := trunks[n]) else None) for n in ordered]


def _runs_in(folder: Path) -> Iterator[tuple[Path, Run]]:
    for database in sorted(folder.glob(f"*/{DATABASE}")):
        try:
            run = open_run(database.parent)
            run.meta, run.config  # noqa: B018 - a folder that cannot be read is left out
        except (RunFolderError, ValueError):
            continue
        yield database.parent.resolve(), run


def _trunk(run: Run, runs: dict[Path, Run]) -> Path | None:
    """Where the run it was forked from lies, if it is still there."""
    origin = run.meta.get("forked_from")
    if origin is None:
        return None
    here = run.path.resolve()
    for path in ((run.path / origin["path"]).resolve(), here.with_name(origin["run"])):
        if path in runs and path != here:
            return path
    return None


def _branches(run: Run, trunk: Run | None) -> Iterator[Branch]:
    """The branches of one run in the order they began."""
    origin = run.meta.get("forked_from", {})
    first = int(origin.get("timeline", 0))
    with reading(run.path), closing(connect_for_reading(run.path)) as database:
        starts = dict(database.execute("SELECT timeline, from_step FROM timelines"))
        steps = database.execute("SELECT step, timeline FROM rollouts").fetchall()
        commands = [
            (timeline, row)
            for timeline in sorted(starts)
            for row in schema.select(
                database, "commands", "timeline = ? AND outcome = 'done'", timeline
            )
            if row.name in CHANGES
        ]
    made: dict[int, set[int]] = {timeline: set() for timeline in starts}
    for step, timeline in steps:
        made[timeline].add(step)
    metrics = run.frame("metrics", history=True, only=("reward", "eval/accuracy"))
    last = max(starts)
    for timeline in sorted(t for t in starts if t >= first):
        from_step = starts[timeline] if timeline else 0
        changes = _differing(run, trunk, commands, first) if timeline == first else []
        for at, row in commands:
            if at == timeline:
                when = "" if row.step == from_step else f"from step {row.step + 1}: "
                changes.append(when + _told(row.name, row.arguments))
        own = metrics[metrics["timeline"] == timeline]
        holder = _holder(from_step, timeline, starts, made)
        if timeline == first:
            parent = "" if trunk is None else _name(trunk, _held_by(trunk, from_step, holder))
        else:
            parent = _name(run, max(holder, first))
        yield Branch(
            _name(run, timeline),
            parent,
            from_step,
            max(made[timeline], default=from_step),
            ", ".join(changes),
            _last(own, "reward"),
            _last(own, "eval/accuracy"),
            run.state if timeline == last else "superseded",
            str(run.path),
            timeline,
        )


def _holder(step: int, before: int, starts: dict[int, int], made: dict[int, set[int]]) -> int:
    """The timeline that made `step` as it stood when timeline `before` began."""
    for timeline in sorted((t for t in starts if t < before), reverse=True):
        later = [t for t in starts if timeline < t < before]
        if step in made[timeline] and all(starts[t] >= step for t in later):
            return timeline
    return 0


def _held_by(trunk: Run, step: int, holder: int) -> int:
    """The trunk's own timeline for a step that a fork inherited; its own trunk's count as first."""
    return max(holder, int(trunk.meta.get("forked_from", {}).get("timeline", 0)))


def _name(run: Run, timeline: int) -> str:
    rewinds = timeline - int(run.meta.get("forked_from", {}).get("timeline", 0))
    return run.name if rewinds <= 0 else f"{run.name} ↶{rewinds}"


def _differing(
    run: Run, trunk: Run | None, commands: list[tuple[int, Any]], first: int
) -> list[str]:
    """Settings a fork began with that were not in force in its trunk."""
    if trunk is None:
        return []
    config = trunk.config
    since = int(trunk.meta["config_timeline"])
    for timeline, row in commands:
        if row.name == "set" and since <= timeline < first:
            config = config.with_changes(**row.arguments)
    before, now = config.flat(), run.config.flat()
    aside = [row for timeline, row in commands if timeline < first and row.name != "set"]
    return [
        _told("set", {name: value})
        for name, value in now.items()
        if before.get(name) != value and not (name == "set_aside" and aside)
    ]


def _told(name: str, arguments: dict[str, Any]) -> str:
    if name != "set":
        ids = arguments["ids"]
        return f"{name} {len(ids)}"
    return ", ".join(f"{key}={_short(value)}" for key, value in arguments.items())


def _short(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else text[:39] + "…"


def _last(metrics: pd.DataFrame, name: str) -> float:
    known = metrics[name].dropna() if name in metrics else pd.Series(dtype=float)
    return float(known.iloc[-1]) if len(known) else float("nan")
