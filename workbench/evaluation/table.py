"""An evaluation as a text table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.evaluation.evaluate import Evaluation


def table(found: Evaluation, harness: Mapping[str, Mapping[str, Any]]) -> str:
    """Scores in per cent with 95 % intervals, then the comparisons, then lm-eval's numbers."""
    parts = []
    if len(found.scores):
        rows = [
            (
                row.set,
                row.policy,
                row.metric,
                f"{100 * row.value:.1f}",
                f"{100 * row.low:.1f} to {100 * row.high:.1f}",
                str(row.n_problems),
            )
            for row in found.scores.itertuples()
        ]
        parts.append(_lines(("set", "policy", "metric", "%", "95 % interval", "problems"), rows))
    if len(found.comparisons):
        rows = [
            (
                row.set,
                f"{row.first} − {row.second}",
                row.metric,
                f"{100 * row.difference:+.1f}",
                f"{100 * row.low:+.1f} to {100 * row.high:+.1f}",
                f"{row.p_value:.3g} ({row.test})",
            )
            for row in found.comparisons.itertuples()
        ]
        parts.append(_lines(("set", "difference", "metric", "points", "95 % interval", "p"), rows))
    if len(found.completions):
        failed = found.completions[found.completions["reward_error"] != ""]
        if len(failed):
            first = failed["reward_error"].iloc[0]
            n, of = len(failed), len(found.completions)
            parts.append(f"the reward failed on {n} of {of} completions, which count as 0: {first}")
    if harness:
        told = [
            (task, metric, f"{value:.4g}")
            for task, numbers in harness.items()
            for metric, value in numbers.items()
        ]
        parts.append(_lines(("lm-eval task", "metric", "value"), told))
    return "\n\n".join(parts)


def _lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [heads, *rows]
    )
