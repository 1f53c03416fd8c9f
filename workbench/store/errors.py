"""The error a person can cause with a run folder."""

from __future__ import annotations


class RunFolderError(Exception):
    """A run folder is missing, taken, in use, damaged or too new; the message is one line."""
