"""The methods, by name. One file each, readable beside its paper."""

from __future__ import annotations

import importlib

from workbench.config import ConfigError, RunConfig
from workbench.training.methods.actguide import ActGuide
from workbench.training.methods.aipo import AIPO
from workbench.training.methods.alternating import Alternating
from workbench.training.methods.bridge import Bridge
from workbench.training.methods.chord import ChordMu, ChordPhi
from workbench.training.methods.cold_start import ColdStart
from workbench.training.methods.grpo import GRPO
from workbench.training.methods.hpt import HPT
from workbench.training.methods.luffy import Luffy
from workbench.training.methods.method import (
    Afterwards,
    Directions,
    Gradients,
    Method,
    Plan,
    Sides,
    judged,
)
from workbench.training.methods.naive_mix import NaiveMix
from workbench.training.methods.prefix_rft import PrefixRFT
from workbench.training.methods.relift import ReLIFT
from workbench.training.methods.sft import SFT
from workbench.training.methods.srft import SRFT
from workbench.training.methods.superrl import SuperRL
from workbench.training.methods.uft import UFT

_BUILT_IN: tuple[type[Method], ...] = (
    Bridge,
    GRPO,
    SFT,
    NaiveMix,
    ColdStart,
    Alternating,
    Luffy,
    SRFT,
    ChordMu,
    ChordPhi,
    ReLIFT,
    HPT,
    SuperRL,
    PrefixRFT,
    UFT,
    ActGuide,
    AIPO,
)
METHODS: dict[str, type[Method]] = {method.name: method for method in _BUILT_IN}


def make_method(config: RunConfig) -> Method:
    """The method of a config: one of METHODS, or 'mymodule:MyMethod' imported.

    Raises ConfigError where there is no such class, or it does not fit the settings.
    """
    name = config.method
    if name in METHODS:
        return METHODS[name]()
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise ConfigError(f"method: cannot import {module!r}: {error}") from None
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ConfigError(
            f"method: {module!r} has no class {attribute!r} that extends "
            "workbench.training.methods.Method"
        )
    return found()


__all__ = [
    "METHODS",
    "Afterwards",
    "Directions",
    "Gradients",
    "Method",
    "Plan",
    "Sides",
    "judged",
    "make_method",
]
