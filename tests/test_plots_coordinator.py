"""Figures of looks at the coordinator: the numbers drawn are the rows'."""

from __future__ import annotations

from math import nan

import plotly.graph_objects as go
import pytest

from tests.frames import frames, make_records
from workbench import plots
from workbench.plots._theme import AGAINST, JOINT, MUTED
from workbench.records import AblationRow, DoseRow


def dose(scale: float, **changes: float) -> DoseRow:
    values = dict(
        scale=scale,
        reward=0.5 + 0.1 * scale,
        reward_error=0.05,
        difference=0.1 * scale,
        standard_error=0.02,
        low=0.1 * scale - 0.04,
        high=0.1 * scale + 0.05,
        start_difference=0.2,
        start_standard_error=0.1,
        start_low=0.1,
        start_high=0.3,
        changed=0.25,
        n_problems=16,
        n_rollouts=4,
    )
    return DoseRow(**{**values, **changes})


def traces(figure: go.Figure) -> dict[str, go.Scatter]:
    return {trace.name: trace for trace in figure.data if trace.name}


def test_a_dose_response_draws_each_difference_and_its_interval_in_order_of_scale() -> None:
    figure = plots.dose_response([dose(2.0), dose(0.0), dose(1.0)])
    line = traces(figure)["against off, scale 0"]
    assert list(line.x) == [0, 1, 2]
    assert list(line.y) == [0.0, 0.1, 0.2]
    band = figure.data[list(figure.data).index(line) - 1]
    assert list(band.y) == [dose(s).high for s in (0, 1, 2)] + [dose(s).low for s in (2, 1, 0)]
    assert band.mode == "lines"
    assert "25% of 16 × 4 texts" in line.customdata[1]
    assert list(traces(figure)["against the start of the run"].y) == [0.2] * 3
    assert figure.layout.uirevision == "kept"


def test_without_a_starting_policy_there_is_one_line() -> None:
    unknown = {f"start_{name}": nan for name in ("difference", "standard_error", "low", "high")}
    figure = plots.dose_response([dose(0.0, **unknown), dose(1.0, **unknown)])
    assert list(traces(figure)) == ["against off, scale 0"]


def ablation(layer: str, difference: float, kl: float) -> AblationRow:
    low, high = difference - 0.1, difference + 0.12
    return AblationRow(layer, 0.5, difference, 0.05, low, high, kl, 0.01, 0.5, 16, 4)


def test_an_ablation_puts_the_whole_first_and_colours_what_excludes_zero() -> None:
    rows = [
        ablation("layers.10", 0.3, 0.02),
        ablation("layers.2", -0.3, 0.01),
        ablation("all", 0.05, 0.5),
    ]
    bars, points = plots.coordinator_ablation(rows).data
    assert list(bars.x) == list(points.x) == ["all", "layer 2", "layer 10"]
    assert list(bars.y) == [0.5, 0.01, 0.02]
    assert list(points.y) == [0.05, -0.3, 0.3]
    assert list(points.marker.color) == [MUTED, AGAINST, JOINT]
    assert abs(points.error_y.array[0] - 0.12) + abs(points.error_y.arrayminus[0] - 0.1) < 1e-9


def test_hostile_names_reach_no_figure_as_markup() -> None:
    figure = plots.coordinator_ablation([ablation("<img src=x onerror=alert(1)>", 0.1, 0.1)])
    assert "<img" not in figure.to_json()


def test_no_rows_give_a_hint() -> None:
    assert "coordinator_ablation" in plots.coordinator_ablation([]).layout.annotations[0].text
    assert "Session.dose_response" in plots.dose_response([]).layout.annotations[0].text


def test_a_layers_effective_rank_is_the_mean_over_its_matrices() -> None:
    coordinator = frames(make_records(10))["coordinator"]
    q_only = (coordinator["layer"] == "layers.2") & coordinator["module"].str.endswith("q_proj")
    coordinator.loc[q_only, "effective_rank"] += 1.0
    line = traces(plots.effective_ranks(coordinator))["layers.2"]
    assert list(line.x) == [5, 10]
    at = 2  # place of the layer in the made-up records
    assert list(line.y) == pytest.approx([1.5 + 0.1 * at + 0.01 * step for step in (5, 10)])
    assert list(line.customdata[0]) == pytest.approx([1.25, 2.25])


def test_a_coordinator_that_was_never_moved_gives_a_hint() -> None:
    coordinator = frames(make_records(5))["coordinator"].assign(effective_rank=nan)
    assert "coordinator_every" in plots.effective_ranks(coordinator).layout.annotations[0].text
