"""The errors a person can cause, or a disk, with a run folder. Each message is one line."""

from __future__ import annotations


class RunFolderError(Exception):
    """A run folder is missing, taken, in use, damaged or too new; the message is one line."""


class DamagedError(RunFolderError):
    """A file of a run folder is missing or not what was written; the message names it."""


class WriteError(RunFolderError):
    """The run folder could not be written, the disk being full say. What was recorded stands."""


class BudgetError(RunFolderError):
    """No new snapshot was written: it would not fit within `snapshot_budget_mb`."""
