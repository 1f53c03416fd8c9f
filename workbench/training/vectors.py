"""A gradient as a value: one tensor for each named parameter, with arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


class ParamVector(dict[str, Tensor]):
    """A point in parameter space, by parameter name. Operations are elementwise and exact."""

    def _with(self, other: ParamVector, op: Callable[[Tensor, Tensor], Tensor]) -> ParamVector:
        assert self.keys() == other.keys()
        return ParamVector({name: op(value, other[name]) for name, value in self.items()})

    def __add__(self, other: ParamVector) -> ParamVector:
        return self._with(other, torch.add)

    def __sub__(self, other: ParamVector) -> ParamVector:
        return self._with(other, torch.sub)

    def __rmul__(self, scale: float) -> ParamVector:
        return ParamVector({name: scale * value for name, value in self.items()})

    @classmethod
    def weighted(cls, a: float, first: ParamVector, b: float, second: ParamVector) -> ParamVector:
        """a·first + b·second, bit for bit, but with room for one tensor more, not for two vectors.

        That is most of a step's update in memory, where a vector has billions of entries.
        """
        return first._with(second, lambda x, y: a * x + b * y)

    def add_(self, other: ParamVector) -> None:
        """Add in place."""
        for name, value in self.items():
            value.add_(other[name])

    def clone(self) -> ParamVector:
        """A copy of every tensor."""
        return ParamVector({name: value.clone() for name, value in self.items()})

    def norm(self) -> float:
        """Euclidean norm, accumulated in float64."""
        return math.sqrt(sum(float(value.double().square().sum()) for value in self.values()))
