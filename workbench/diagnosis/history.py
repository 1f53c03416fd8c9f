"""What the detectors look at: the metrics of a run up to now, and the settings in force."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite, nan
from statistics import median
from typing import Any

import numpy as np

FURTHEST_BACK = 500
"""Values that a search for an onset goes back at most: a long run's step costs what others do."""
EARLIEST = 16
"""Values of each metric that are kept from its start; of the others the newest FURTHEST_BACK."""

LOGGED_SETTINGS = {"base_lr": ("base_lr", "learning_rate")}
"""Settings that logs carry as a column, under these names."""


class History:
    """Metrics by name, row by row; a row is a step that was logged.

    It grows at the end only, so whatever is computed from it uses nothing of the future.
    """

    def __init__(self) -> None:
        self.n_rows = 0
        self.step = 0
        """Step of the newest row."""
        self.settings: Mapping[str, Any] = {}
        """The config in force, by leaf name; empty for a log of another program."""
        self._steps: dict[str, array[int]] = {}  # a third of what lists of numbers take
        self._values: dict[str, array[float]] = {}  # those between the kept ones are left out
        self._counts: dict[str, int] = {}
        self._rows: dict[str, int] = {}
        self.non_finite: list[tuple[int, str, float]] = []
        """Logged values that are NaN or infinite: (step, name, value)."""

    def add(self, step: int, row: Mapping[str, float]) -> None:
        """The next row. A value that was not measured is left out; NaN means that it was."""
        assert step > self.step or not self.n_rows, (step, self.step)
        self.n_rows += 1
        self.step = step
        for name, value in row.items():
            if isfinite(value):
                if name not in self._values:
                    self._steps[name], self._values[name] = array("q"), array("d")
                    self._counts[name] = 0
                self._steps[name].append(step)
                self._values[name].append(value)
                if len(self._values[name]) > EARLIEST + 2 * FURTHEST_BACK:
                    for kept in (self._steps[name], self._values[name]):
                        del kept[EARLIEST:-FURTHEST_BACK]
                self._counts[name] += 1
                self._rows[name] = self.n_rows
            else:
                self.non_finite.append((step, name, float(value)))

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def count(self, name: str) -> int:
        """How often a metric was measured."""
        return self._counts.get(name, 0)

    def head(self, name: str, n: int) -> np.ndarray:
        """The first n measured values, n ≤ EARLIEST."""
        return np.array(self._values.get(name, ())[:n])

    def tail(self, name: str, n: int) -> np.ndarray:
        """The last n measured values, oldest first, n ≤ FURTHEST_BACK."""
        return np.array(self._values.get(name, ())[-n:])

    def before(self, name: str, n: int) -> np.ndarray:
        """The n measured values before the newest one."""
        return np.array(self._values.get(name, ())[-n - 1 : -1])

    def start(self, name: str, n: int = 5) -> float:
        """Median of the first n ≤ EARLIEST measured values; NaN where there is none."""
        return _median(self._values.get(name, ())[:n])

    def level(self, name: str, n: int = 5) -> float:
        """Median of the last n measured values; NaN where there is none."""
        return _median(self._values.get(name, ())[-n:])

    def now(self, name: str) -> float:
        """The value at the newest row; NaN where it was not measured there."""
        if self._rows.get(name) != self.n_rows:
            return nan
        return self._values[name][-1]

    def last_steps(self, name: str, n: int) -> list[int]:
        """Steps of the last n measured values."""
        return list(self._steps[name][-n:]) if name in self else []

    def since(self, name: str, holds: Callable[[float], bool], misses: int = 1) -> int:
        """First step of the stretch, up to now, in which `holds` is true of the metric.

        `misses` values in a row may fail it. The newest step where it does not hold at all.
        """
        steps, values = self._steps[name], self._values[name]
        onset, missed = steps[-1], 0
        for step, value in zip(
            steps[: -FURTHEST_BACK - 1 : -1], values[: -FURTHEST_BACK - 1 : -1], strict=True
        ):
            if holds(value):
                onset, missed = step, 0
            else:
                missed += 1
                if missed > misses:
                    break
        return onset

    def setting(self, name: str) -> Any:
        """A setting as the log has it at the newest step, else the config; None: unknown."""
        for column in LOGGED_SETTINGS.get(name, ()):
            if self.count(column):
                return self._values[column][-1]
        return self.settings.get(name)


def _median(values: Sequence[float]) -> float:
    """Of a few numbers, for which NumPy's takes far longer."""
    return median(values) if values else nan
