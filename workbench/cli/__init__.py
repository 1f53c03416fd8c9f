"""Commands of `python -m workbench` in files of their own: `add` declares one, `run` does it."""
