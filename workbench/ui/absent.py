"""What a run's method does not have or use, so that the app can say so where it would be."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.config import KNOBS, RunConfig
from workbench.training.methods import METHODS


@dataclass(frozen=True)
class Absent:
    """Why there is none of each, in a sentence; empty where there is."""

    rollouts: str = ""
    demonstrations: str = ""
    baseline: str = ""
    coordinator: str = ""

    @property
    def alignment(self) -> str:
        """Of two gradients to compare."""
        return self.rollouts or self.demonstrations

    @property
    def gain(self) -> str:
        """Of two policies to compare."""
        return self.rollouts or self.baseline


def absent(config: RunConfig) -> Absent:
    """What a run of this config does not have; nothing is said of a method of the user's own."""
    method = METHODS.get(config.method)
    if method is None:
        return Absent()
    name, tracked = f"The method {config.method}", config.training.track_baseline
    fork = "fork the run, or start one, with track_baseline = true to measure its gain"
    return Absent(
        rollouts=""
        if method.rollouts or tracked
        else f"{name} draws no rollouts: it learns from demonstrations alone, without rewards.",
        demonstrations="" if method.demonstrations else f"{name} learns from no demonstrations.",
        baseline=""
        if method.baseline or tracked
        else f"{name} keeps no RL-only baseline to compare with; {fork}.",
        coordinator="" if method.coordinator else f"{name} trains no coordinator w.",
    )


def used_knobs(config: RunConfig) -> list[str]:
    """The live settings that the method listens to; all for a method of the user's own."""
    names = [knob.name for knob in KNOBS]
    method = METHODS.get(config.method)
    if method is None:
        return names
    unused = {name for name, only in _OF_ONE.items() if only != config.method}
    unused |= set() if method.rollouts else _OF_ROLLOUTS
    unused |= set() if method.coordinator else {"coordinator_lr"}
    return [name for name in names if name not in unused]


_OF_ONE = {"rl_weight": "bridge", "sft_weight": "naive_mix"}
_OF_ROLLOUTS = {"clip_range", "kl_coef", "reward_flip"}
