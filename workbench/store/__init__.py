"""The run folder: RunStore writes it, open_run reads it. No torch in here."""

from workbench.store.errors import RunFolderError
from workbench.store.reader import Run, open_run
from workbench.store.snapshots import Snapshot
from workbench.store.writer import RunStore

__all__ = ["Run", "RunFolderError", "RunStore", "Snapshot", "open_run"]
