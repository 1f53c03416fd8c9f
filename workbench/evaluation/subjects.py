"""Who is evaluated: the policies of a run side by side, or a model by itself.

joint      θ+w, the policy that a run trains and exports
off        θ with the coordinator off
baseline   θ̂+w, the RL-only baseline
base       the model that the run started from
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from workbench.capture import BASELINE, load_weights
from workbench.config import ConfigError, ModelConfig, RunConfig
from workbench.policy import Policy, PolicyName
from workbench.store import Run, RunFolderError, open_run
from workbench.store.snapshots import folder_of, read

POLICIES = ("joint", "off", "baseline", "base")
_PARTS: dict[str, tuple[PolicyName, float]] = {
    "joint": ("joint", 1.0),
    "off": ("joint", 0.0),
    "baseline": ("baseline", 1.0),
    "base": ("reference", 1.0),
    "model": ("joint", 1.0),
}


@dataclass(frozen=True)
class Subject:
    """A model in memory whose policies can be evaluated."""

    policy: Policy
    config: RunConfig
    names: tuple[str, ...]
    """Some of POLICIES, or 'model'."""
    run: Run | None
    step: int

    @contextmanager
    def using(self, name: str) -> Iterator[PolicyName]:
        """Inside, `policy.of` the name given is the policy called `name`."""
        part, scale = _PARTS[name]
        with self.policy.coordinator_scale(scale):
            yield part


def open_subjects(path: str, wanted: tuple[str, ...], step: int | None) -> Subject:
    """A run folder's policies at a snapshot (default: the last), or a model's by its path.

    wanted: some of POLICIES; empty: all the run has. Nothing in the folder is changed, and a
    running run is read where its last snapshot stands. Raises ConfigError, RunFolderError.
    """
    if not (Path(path) / "run.sqlite").exists():
        if wanted:
            raise ConfigError(f"--policy: {path!r} is no run folder, so it has one policy only")
        config = RunConfig().with_changes(model=ModelConfig(path=path))
        policy = Policy(config.model, 0, baseline=False, reference=False)
        return Subject(policy, config, ("model",), None, 0)
    run = open_run(path)
    steps = run.snapshot_steps()
    at = steps[-1] if step is None and steps else step
    if at not in steps:
        listed = ", ".join(map(str, steps)) or "none"
        raise RunFolderError(f"{path} has no snapshot of step {step}; there are: {listed}")
    assert at is not None
    folder = run.path / "snapshots"
    trained_baseline = (folder_of(folder, at) / BASELINE).exists()
    names = wanted or tuple(n for n in POLICIES if n != "baseline" or trained_baseline)
    if "baseline" in names and not trained_baseline:
        raise ConfigError(f"--policy baseline: method {run.config.method!r} keeps none")
    policy = Policy(
        run.config.model,
        run.config.seed,
        baseline="baseline" in names,
        reference="base" in names,
    )
    load_weights(policy, read(folder, at))
    return Subject(policy, run.config, names, run, at)


assert {part for part, _ in _PARTS.values()} <= set(get_args(PolicyName))
