"""A workbench for post-training language models with SFT and RL at once (BRIDGE).

from workbench import Session, RunConfig, open_run, plots
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Torch's OpenMP threads spin while they wait for each other. With another busy program on the same
# cores (a browser that draws the app is enough) a step then takes up to a hundred times as long;
# threads that sleep do not mind. Read once, when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    from workbench import plots as plots
    from workbench.comparing.running import compare as compare
    from workbench.config import RunConfig as RunConfig
    from workbench.session import Session as Session
    from workbench.store import open_run as open_run
    from workbench.store import run_tree as run_tree
    from workbench.training import methods as methods

_HOME = {
    "RunConfig": "workbench.config",
    "Session": "workbench.session",
    "compare": "workbench.comparing.running",
    "open_run": "workbench.store",
    "run_tree": "workbench.store",
}
_ROOMS = {"plots": "workbench.plots", "methods": "workbench.training.methods"}
__all__ = ["RunConfig", "Session", "compare", "methods", "open_run", "plots", "run_tree"]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: reading a run folder needs no torch."""
    if name in _ROOMS:
        return import_module(_ROOMS[name])
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'workbench' has no attribute {name!r}")
