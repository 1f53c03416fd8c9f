"""What scores a completion: the section's list `rewards`, part by part."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from workbench.config.sections import Section

RewardKind = Literal["task", "math", "exact", "choice", "pattern", "gym", "function"]


class RewardConfig(Section):
    """One part of the reward; the reward is the parts' mean, weighted."""

    kind: RewardKind
    """task: the task's own; math: math-verify (extra `math`); exact: the same text; choice: the
    same letter; pattern: it is found; gym: reasoning-gym's scorer; function: your own."""
    weight: float = Field(1.0, ge=0)
    """Its share of the reward; 0: measured and shown, not rewarded."""
    name: str = ""
    """How it is called in records; default: its kind, or the function's name."""
    pattern: str = ""
    """pattern: what to look for; exact: its first group is the answer (default: the task's way)."""
    letters: str = "ABCDE"
    """choice: the letters there are."""
    threshold: float = Field(1.0, ge=0, le=1)
    """gym: 1 from this score on, else 0; 0: reasoning-gym's partial credit as it is."""
    function: str = ""
    """function: 'module:name', called with (completion, problem), gives a number."""
    seconds: float = Field(10.0, gt=0)
    """math: longest time for one completion; one that takes longer is an error."""
    characters: int = Field(4000, ge=1)
    """math: so many characters at the completion's end are read."""

    @property
    def label(self) -> str:
        """What its part is called."""
        return self.name or self.function.rpartition(":")[2] or self.kind

    @model_validator(mode="after")
    def _complete(self) -> RewardConfig:
        if (self.kind == "function") != bool(self.function):
            raise ValueError("rewards.function: goes with kind = 'function', as 'module:name'")
        if self.function and not re.fullmatch(r"[\w.]+:\w+", self.function):
            raise ValueError(f"rewards.function: {self.function!r} is not 'module:name'")
        if self.kind == "pattern" and not self.pattern:
            raise ValueError("rewards.pattern: kind = 'pattern' needs one")
        if self.pattern:
            if self.kind not in ("pattern", "exact"):
                raise ValueError("rewards.pattern: goes with kind = 'pattern' or 'exact'")
            try:
                groups = re.compile(self.pattern).groups
            except re.error as error:
                raise ValueError(f"rewards.pattern: not a regular expression: {error}") from None
            if self.kind == "exact" and not groups:
                raise ValueError("rewards.pattern: needs a group (…) around the answer")
        if not re.fullmatch(r"[A-Z]{2,26}", self.letters):
            raise ValueError("rewards.letters: capital letters, at least two")
        return self
