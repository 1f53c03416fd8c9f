"""Imported before any test module, so that what `workbench` sets for torch comes before torch."""

import signal

import workbench  # noqa: F401

# A shell starts background jobs with Ctrl-C ignored; tests that press it would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
