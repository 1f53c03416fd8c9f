"""The run folder: RunStore writes it, open_run reads it. No torch in here."""

from workbench.store.errors import BudgetError, DamagedError, RunFolderError, WriteError
from workbench.store.reader import Run, open_run
from workbench.store.snapshots import Snapshot
from workbench.store.tree import branch_metrics, run_tree
from workbench.store.writer import RunStore

__all__ = [
    "BudgetError",
    "DamagedError",
    "Run",
    "RunFolderError",
    "RunStore",
    "Snapshot",
    "WriteError",
    "branch_metrics",
    "open_run",
    "run_tree",
]
