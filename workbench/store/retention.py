"""Which snapshots are kept: the config's rule, and a disk budget that is never exceeded."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from workbench.config import SnapshotsConfig
from workbench.store import snapshots
from workbench.store.durable import remove_tree
from workbench.store.errors import BudgetError

MB = 1_000_000


def superfluous(recorded: list[int], keep: SnapshotsConfig, stay: Collection[int]) -> list[int]:
    """Which of the ascending steps go: not one of `stay`, not the newest, not a kept multiple."""
    newest = set(recorded[-keep.keep_last :])
    return [
        step
        for step in recorded
        if step not in newest
        and step not in stay
        and not (keep.keep_every and step % keep.keep_every == 0)
    ]


def used_bytes(folder: Path) -> int:
    """Bytes of all files below a folder, one with several names counted once."""
    found = [path.lstat() for path in folder.rglob("*") if not path.is_dir()]
    return sum({(s.st_dev, s.st_ino): s.st_size for s in found}.values())


def own_bytes(folder: Path) -> tuple[int, int]:
    """Bytes of a snapshot's files: all, and those that would be free if it were deleted."""
    found = [path.lstat() for path in folder.rglob("*") if not path.is_dir()]
    names: dict[int, int] = {}  # a file may have two names in one snapshot
    for stat in found:
        names[stat.st_ino] = names.get(stat.st_ino, 0) + 1
    own = {s.st_ino: s.st_size for s in found if s.st_nlink == names[s.st_ino]}
    return sum(s.st_size for s in found), sum(own.values())


def make_room(
    folder: Path, budget_mb: float, stay: Collection[int], exempt: int | None = None
) -> Callable[[int], None]:
    """A function that deletes the oldest snapshots until so many bytes more fit in the budget.

    Damaged ones that were set aside go first; the steps of `stay` never; `exempt`, the one that
    is being replaced, last. The function raises BudgetError where that is not enough, and then has
    deleted nothing. A budget of 0 is none.
    """

    def room(needed: int) -> None:
        if not budget_mb:
            return
        budget = int(budget_mb * MB)
        gone = sorted(folder.glob("damaged-step-*"))
        old = [step for step in snapshots.steps(folder) if step not in stay]
        gone += [
            snapshots.folder_of(folder, s) for s in sorted(old, key=lambda s: (s == exempt, s))
        ]
        least = _bytes_without(folder, gone) + needed
        if least > budget:
            raise BudgetError(
                f"snapshot_budget_mb = {budget_mb:g}: a new snapshot does not fit, it would take "
                f"{least / MB:.1f} MB with those that stay (steps {_listed(folder, stay)}); unpin "
                "one, or fork with a larger budget"
            )
        for path in gone:
            if used_bytes(folder) + needed <= budget:
                return
            if path.name.startswith("damaged"):
                remove_tree(path)
            else:
                snapshots.remove(folder, int(path.name.removeprefix("step-")))

    return room


def _bytes_without(folder: Path, gone: list[Path]) -> int:
    found = [
        path.lstat()
        for path in folder.rglob("*")
        if not path.is_dir() and not any(path.is_relative_to(each) for each in gone)
    ]
    return sum({(s.st_dev, s.st_ino): s.st_size for s in found}.values())


def _listed(folder: Path, stay: Collection[int]) -> str:
    return ", ".join(str(step) for step in snapshots.steps(folder) if step in stay) or "none"
