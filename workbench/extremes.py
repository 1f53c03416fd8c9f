"""Which rows hold an extreme: what a long series is thinned to without losing a spike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd


def extremes(rows: pd.DataFrame, columns: Sequence[Any], group: np.ndarray) -> list[int]:
    """Positions of the rows that hold the lowest or the highest value of a column in their group.

    group: a number a row, ascending. The first and the last row of all are among them; NaN is no
    value. Ascending. Taking extremes of what was kept gives those of all that was there.
    """
    kept = {0, len(rows) - 1} if len(rows) else set()
    for column in columns:
        values = pd.Series(rows[column].to_numpy(dtype=float)).dropna()
        by_group = values.groupby(group[values.index])
        kept |= {*by_group.idxmin(), *by_group.idxmax()}
    return sorted(kept)
