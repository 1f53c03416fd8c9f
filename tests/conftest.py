"""Imported before any test module, so that what `workbench` sets for torch comes before torch."""

import os
import signal

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # workers side by side: a thread each, and their children
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import workbench  # noqa: E402, F401

# A shell starts background jobs with Ctrl-C ignored; tests that press it would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first, so that no worker is left alone with one."""
    items.sort(key=lambda item: "ui" not in item.path.parts)
