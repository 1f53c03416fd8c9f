"""Plotly figures from a run's frames: `plots.curves(run.frame("metrics"), "reward").show()`.

Pure functions from a pandas frame (see workbench/records.py for the columns) to a plain
`plotly.graph_objects.Figure`. A frame without the needed rows gives a figure that says what is
missing. This package imports no torch and knows no session.
"""

from __future__ import annotations

from workbench.plots._theme import empty
from workbench.plots.alignment import (
    Part,
    alignment_heatmap,
    alignment_over_time,
    conflict_share,
    demonstrations_over_time,
    demonstrations_scatter,
    gain_signal,
    layer_order,
    norm_ratio,
)
from workbench.plots.branches import branches
from workbench.plots.compare import method_curves, overlaid_runs
from workbench.plots.coordinator import (
    coordinator_ablation,
    coordinator_norms,
    dose_response,
    effective_ranks,
    logprob_difference,
    singular_values,
    singular_values_over_time,
)
from workbench.plots.curves import PANELS, Line, Panel, curves, phase_seconds
from workbench.plots.data import length_histogram
from workbench.plots.demonstrations import demonstration_visits
from workbench.plots.gain import (
    gain_by_prompt,
    gain_estimates,
    gain_heatmap,
    gain_over_time,
    gain_shares,
    newest_gain,
    verdicts,
)
from workbench.plots.marks import mark_commands
from workbench.plots.replay import layer_norms, update_sizes
from workbench.plots.tokens import (
    COLOURINGS,
    Colouring,
    difference_strip,
    token_strip,
)

__all__ = [
    "COLOURINGS",
    "Colouring",
    "PANELS",
    "Line",
    "Panel",
    "Part",
    "alignment_heatmap",
    "alignment_over_time",
    "branches",
    "conflict_share",
    "coordinator_ablation",
    "coordinator_norms",
    "curves",
    "demonstration_visits",
    "demonstrations_over_time",
    "demonstrations_scatter",
    "difference_strip",
    "dose_response",
    "effective_ranks",
    "empty",
    "gain_by_prompt",
    "gain_estimates",
    "gain_heatmap",
    "gain_over_time",
    "gain_shares",
    "gain_signal",
    "layer_norms",
    "layer_order",
    "length_histogram",
    "logprob_difference",
    "mark_commands",
    "method_curves",
    "newest_gain",
    "norm_ratio",
    "overlaid_runs",
    "phase_seconds",
    "singular_values",
    "singular_values_over_time",
    "token_strip",
    "update_sizes",
    "verdicts",
]
