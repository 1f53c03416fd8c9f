"""Making a run folder that starts from the end of a step of another one."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from workbench.config import RunConfig
from workbench.store import creation, retention, schema, snapshots
from workbench.store.durable import link_or_copy, sync, sync_tree
from workbench.store.errors import RunFolderError
from workbench.store.folder import DATABASE, ROLLOUTS, SNAPSHOTS, check_rollouts_name
from workbench.store.snapshots import Snapshot


def fork(
    source: sqlite3.Connection,
    trunk: Path,
    target: Path,
    at_step: int,
    trunk_config: RunConfig,
    config: RunConfig | None,
    start: Snapshot | None,
) -> None:
    """Make the folder `target`, whole or not at all; see RunStore.fork.

    Raises RunFolderError where it cannot be made, BudgetError where the snapshots that stay do not
    fit the config's budget.
    """
    building = target.with_name(f".forking-{target.name}-{os.getpid()}")
    try:
        for part in (ROLLOUTS, SNAPSHOTS):
            (building / part).mkdir(parents=True)
    except OSError as error:
        raise RunFolderError(f"cannot make a run at {target}: {error.strerror}") from None
    try:
        creation.write_config(building, config or trunk_config)
        pinned = _copy_history(source, trunk, building, target, at_step, config is not None)
        for step in snapshots.steps(trunk / SNAPSHOTS):
            there = snapshots.folder_of(trunk / SNAPSHOTS, step)
            if step <= at_step and not there.is_symlink():
                copied = snapshots.folder_of(building / SNAPSHOTS, step)
                shutil.copytree(there, copied, symlinks=True, copy_function=link_or_copy)
        budget = (config or trunk_config).snapshots.snapshot_budget_mb
        stay = {0, at_step, *pinned}
        room = retention.make_room(building / SNAPSHOTS, budget, stay, exempt=at_step)
        room(0)
        if start is not None:
            snapshots.write(building / SNAPSHOTS, start, room)
        sync_tree(building)
        os.rename(building, target)
        sync(target.parent)
    except BaseException:
        shutil.rmtree(building)
        raise


def _copy_history(
    source: sqlite3.Connection,
    trunk: Path,
    building: Path,
    target: Path,
    at_step: int,
    own_config: bool,
) -> list[int]:
    """Fill `building`, which will be moved to `target`, with the live history up to a step.

    The rollouts files of `trunk` get a second name there. `own_config`: the fork does not go on
    under the trunk's config, so its commands no longer change it.
    Returns the steps that are pinned.
    """
    with closing(sqlite3.connect(building / DATABASE)) as copy:
        copy.execute("PRAGMA synchronous = OFF")  # the whole folder is flushed in the end
        source.backup(copy)
        with copy:
            for table in ("rollouts", "metrics", *schema.STEP_ROWS, *schema.EVENT_ROWS):
                live = schema.LIVE.format(table=table)
                copy.execute(f'DELETE FROM "{table}" WHERE step > ? OR NOT {live}', (at_step,))
            timeline = schema.start_timeline(copy, at_step)
            origin = {
                "run": trunk.name,
                "path": os.path.relpath(trunk, target),
                "step": at_step,
                "timeline": timeline,
            }
            pinned = [s for s in schema.read_meta(copy).get(schema.PINNED, []) if s <= at_step]
            meta = {"created": time.time(), "forked_from": origin, schema.PINNED: pinned}
            schema.write_meta(copy, meta | ({"config_timeline": timeline} if own_config else {}))
        for (file,) in copy.execute("SELECT file FROM rollouts WHERE file != ''"):
            check_rollouts_name(trunk, file)
            link_or_copy(trunk / ROLLOUTS / file, building / ROLLOUTS / file)
    return pinned
