"""Imported before any test module, so that what `workbench` sets for torch comes before torch."""

import workbench  # noqa: F401
