"""Figures: the numbers drawn are the frame's, hostile text is inert, nothing gives a hint."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from plotly.utils import PlotlyJSONEncoder

from tests.frames import frames, make_records
from workbench import plots
from workbench.plots._theme import log_axis

MADE = frames(make_records(20))

EVERY_FIGURE = {
    **{
        f"curves {name}": lambda f, name=name: plots.curves(f["metrics"], name, f["commands"])
        for name in plots.PANELS
    },
    "curves of columns": lambda f: plots.curves(f["metrics"], ["kl", "entropy"]),
    "seconds": lambda f: plots.phase_seconds(f["metrics"]),
    "heatmap paired": lambda f: plots.gain_heatmap(f["gain"]),
    "heatmap shared": lambda f: plots.gain_heatmap(f["gain"], "shared"),
    "heatmap rank": lambda f: plots.gain_heatmap(f["gain"], "shared", rows="rank"),
    "by prompt": lambda f: plots.gain_by_prompt(f["gain"]),
    "gain estimates": lambda f: plots.gain_estimates(
        f["gain"].query("step == 10 and estimator == 'shared'"),
        f["gain"].query("step == 10 and estimator == 'paired'"),
    ),
    "gain over time": lambda f: plots.gain_over_time(f["gain"]),
    "gain shares": lambda f: plots.gain_shares(f["gain"], "shared"),
    "alignment": lambda f: plots.alignment_over_time(f["alignment"]),
    "alignment of the gain": lambda f: plots.alignment_over_time(f["alignment"], "gain"),
    "alignment heatmap": lambda f: plots.alignment_heatmap(f["alignment"], "coordinator"),
    "norm ratio": lambda f: plots.norm_ratio(f["alignment"]),
    "conflict share": lambda f: plots.conflict_share(f["alignment"]),
    "gain signal": lambda f: plots.gain_signal(f["alignment"]),
    "demonstrations": lambda f: plots.demonstrations_scatter(f["demonstrations"]),
    "quality": lambda f: plots.demonstrations_scatter(f["demonstrations"], reveal_quality=True),
    "demonstrations over time": lambda f: plots.demonstrations_over_time(f["demonstrations"]),
    "demonstration visits": lambda f: plots.demonstration_visits(f["demonstrations"], "demo-0006"),
    "coordinator norms": lambda f: plots.coordinator_norms(f["coordinator"]),
    "effective ranks": lambda f: plots.effective_ranks(f["coordinator"]),
    "singular values": lambda f: plots.singular_values(f["coordinator"]),
    "singular values over time": lambda f: plots.singular_values_over_time(
        f["coordinator"], "layers.0.self_attn.q_proj"
    ),
}


def text_of(figure: go.Figure) -> str:
    return re.sub(r'\\"', '"', PlotlyJSONEncoder().encode(figure.to_dict()))


@pytest.mark.parametrize("name", EVERY_FIGURE)
def test_every_figure_draws_and_keeps_its_zoom(name: str) -> None:
    figure = EVERY_FIGURE[name](MADE)
    assert type(figure) is go.Figure
    assert figure.data
    assert figure.layout.uirevision == "kept"
    assert figure.layout.title.text


@pytest.mark.parametrize("name", EVERY_FIGURE)
def test_no_axis_range_depends_on_the_data(name: str) -> None:
    """Plotly drops a person's zoom where an update sets another range."""
    fewer = EVERY_FIGURE[name](frames(make_records(15))).layout
    for axis in ("xaxis", "yaxis"):
        assert EVERY_FIGURE[name](MADE).layout[axis].range == fewer[axis].range


@pytest.mark.parametrize("name", EVERY_FIGURE)
def test_empty_frames_give_a_hint(name: str) -> None:
    nothing = {key: frame.iloc[:0] for key, frame in MADE.items()}
    nothing["metrics"] = MADE["metrics"][["step"]].iloc[:0]
    figure = EVERY_FIGURE[name](nothing)
    assert not figure.data
    assert len(figure.layout.annotations[0].text) > 10


@pytest.mark.parametrize("name", EVERY_FIGURE)
def test_one_step_is_enough_to_draw(name: str) -> None:
    EVERY_FIGURE[name](frames(make_records(1)))


def test_curves_draw_the_frames_numbers_and_leave_gaps_out() -> None:
    figure = plots.curves(MADE["metrics"], "accuracy")
    line = next(trace for trace in figure.data if trace.name == "joint")
    assert list(line.x) == [5, 10, 15, 20]
    assert np.allclose(line.y, [0.225, 0.25, 0.275, 0.3])


def test_a_spike_of_the_kl_turns_its_axis_logarithmic() -> None:
    metrics = pd.DataFrame({"step": range(1, 6), "kl": [0.01, 0.02, 0.02, 0.03, 0.04]})
    assert plots.curves(metrics, "kl").layout.yaxis.type != "log"
    metrics.loc[3, "kl"] = 6.0
    assert plots.curves(metrics, "kl").layout.yaxis.type == "log"


def test_the_band_around_an_accuracy_is_wilsons_interval() -> None:
    """Both ends are the shares from which the measured one lies 1.96 standard errors away."""
    measured = np.array([0.2, 1.0])
    metrics = pd.DataFrame({"step": [1, 2], "eval/accuracy": measured, "eval/problems": 64.0})
    high, low = np.reshape(plots.curves(metrics, "accuracy").data[0].y, (2, 2))
    for end in (high, low[::-1]):
        off = np.abs(measured - end)
        assert np.allclose(off, 1.96 * np.sqrt(end * (1 - end) / 64))
    assert (low[::-1] < measured).all() and high[0] > measured[0]


def test_a_long_run_is_thinned_to_its_extremes_and_loses_no_spike() -> None:
    steps = np.arange(1, 5001)
    metrics = pd.DataFrame({"step": steps, "entropy": np.sin(steps / 700)})
    metrics.loc[3210, "entropy"] = 9.0
    metrics.loc[4321, "entropy"] = np.nan
    figure = plots.curves(metrics, "entropy")
    x, y = figure.data[0].x, figure.data[0].y
    assert len(x) <= 602 and (x[0], x[-1]) == (1, 5000)
    assert (metrics["entropy"].to_numpy()[x - 1] == y).all()
    assert y.max() == 9.0 and (np.diff(x) > 0).all()
    assert figure.layout.title.text == "Entropy, thinned"


@pytest.fixture(scope="module")
def long_runs() -> list[dict[str, pd.DataFrame]]:
    return [frames(make_records(n)) for n in (600, 1200)]


@pytest.mark.parametrize(
    "name",
    ["curves reward", "curves gain", "gain over time", "alignment", "norm ratio", "gain signal",
     "conflict share", "demonstrations over time", "seconds", "heatmap shared"],
)  # fmt: skip
def test_a_figure_of_a_long_run_stays_small(
    name: str, long_runs: list[dict[str, pd.DataFrame]]
) -> None:
    size = [len(EVERY_FIGURE[name](run).to_json()) for run in long_runs]
    assert size[1] < 1.3 * size[0]


def test_a_command_that_changed_the_run_is_marked_behind_its_step() -> None:
    figure = plots.curves(MADE["metrics"], "reward", MADE["commands"])
    assert [shape.x0 for shape in figure.layout.shapes] == [4.5]
    assert [note.text for note in figure.layout.annotations] == ["rl_weight=0.7"]


def gains(gain: list[float], error: list[float], p: list[float]) -> pd.DataFrame:
    return pd.DataFrame(
        {"step": 1, "estimator": "paired", "gain": gain, "standard_error": error, "p_value": p}
    )


def test_without_p_values_helped_and_hurt_mean_more_than_196_standard_errors() -> None:
    nan = float("nan")
    errors = [0.1, 0.1, 0.1, 0.1, nan, 0.0]
    found = plots.verdicts(gains([0.20, 0.19, -0.20, -0.19, nan, 0.0], errors, [nan] * 6))
    expected = ["helped", "undecided", "hurt", "undecided", "blanked", "undecided"]
    assert list(found) == expected


def test_helped_and_hurt_hold_the_false_discovery_rate_of_each_step() -> None:
    """Benjamini and Hochberg 1995, their own example: 4 of 15 pass at 5 %."""
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344]
    p += [0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    gain = [0.5, -0.5] * 7 + [0.5]
    one = gains(gain, [0.01] * 15, p)
    other = gains([0.5], [0.01], [0.04]).assign(step=2)  # alone in its step: passes
    found = list(plots.verdicts(pd.concat([one, other], ignore_index=True)))
    assert found[:4] == ["helped", "hurt", "helped", "hurt"]
    assert set(found[4:15]) == {"undecided"}
    assert found[15] == "helped"


def test_heatmap_cells_are_the_measured_gains_and_blanked_cells_are_crossed() -> None:
    figure = plots.gain_heatmap(MADE["gain"], "shared")
    cells, crosses = figure.data
    shared = MADE["gain"][MADE["gain"]["estimator"] == "shared"]
    drawn = {
        (cells.customdata[row][column], int(cells.x[column])): cells.z[row][column]
        for row in range(len(cells.y))
        for column in range(len(cells.x))
        if not np.isnan(cells.z[row][column])
    }
    measured = shared[shared["gain"].notna()]
    assert drawn == {(r.prompt_id, r.step): r.gain for r in measured.itertuples()}
    assert len(crosses.x) == shared["gain"].isna().sum()
    assert cells.zmin == -cells.zmax


def test_heatmap_puts_the_prompt_with_the_highest_mean_gain_on_top() -> None:
    figure = plots.gain_heatmap(MADE["gain"], "paired")
    means = np.nanmean(np.asarray(figure.data[0].z, dtype=float), axis=1)
    assert list(means) == sorted(means)


def test_heatmap_by_rank_sorts_each_column() -> None:
    z = np.asarray(plots.gain_heatmap(MADE["gain"], "shared", rows="rank").data[0].z, dtype=float)
    for column in z.T:
        known = column[~np.isnan(column)]
        assert list(known) == sorted(known) and len(known) == 3


def test_heatmaps_of_a_long_run_draw_its_newest_steps() -> None:
    gains = plots.gain_heatmap(MADE["gain"], "shared", most_steps=3)
    assert list(gains.data[0].x) == ["18", "19", "20"]
    layers = plots.alignment_heatmap(MADE["alignment"], most_steps=3)
    assert list(layers.data[0].x) == [18, 19, 20]
    assert "last 3 measured steps" in layers.layout.title.text


def test_by_prompt_is_sorted_with_whiskers_of_196_standard_errors() -> None:
    figure = plots.gain_by_prompt(MADE["gain"], step=12)
    assert "step 10" in figure.layout.title.text
    points = sorted((x, y) for trace in figure.data for x, y in zip(trace.x, trace.y, strict=True))
    measured = MADE["gain"].query("estimator == 'paired' and step == 10")["gain"]
    assert [y for _, y in points] == sorted(measured)
    assert all(np.allclose(trace.error_y.array, 1.96 * 0.12) for trace in figure.data)


def test_mean_gain_has_the_error_of_independent_prompts() -> None:
    paired = plots.gain_over_time(MADE["gain"]).data[1]
    first = MADE["gain"].query("estimator == 'paired' and step == 5")
    assert np.isclose(paired.y[0], first["gain"].mean())
    assert np.isclose(paired.error_y.array[0], 1.96 * 0.12 / np.sqrt(6))


def test_points_inside_the_noise_band_are_hollow() -> None:
    figure = plots.alignment_over_time(MADE["alignment"], "base")
    hollow = next(trace for trace in figure.data if trace.name == "inside the noise")
    assert hollow.marker.symbol == "circle-open"
    rows = MADE["alignment"].query("part == 'base' and layer == 'all'")
    assert list(hollow.x) == list(rows[rows["cosine"].abs() <= rows["noise"]]["step"])
    solid = [trace for trace in figure.data if trace.name in ("agree", "conflict")]
    assert sum(len(trace.x) for trace in (*solid, hollow)) == len(rows)


def test_a_point_without_a_noise_band_gets_no_verdict() -> None:
    figure = plots.alignment_over_time(MADE["alignment"], "gain")
    drawn = {trace.name: len(trace.x) for trace in figure.data if trace.mode == "markers"}
    rows = MADE["alignment"].query("part == 'gain' and layer == 'all'")
    assert drawn == {"agree": 0, "conflict": 0, "inside the noise": 0, "no noise band": len(rows)}


def test_a_visit_is_a_bar_and_the_sum_so_far_a_line() -> None:
    visits = MADE["demonstrations"].query("demonstration_id == 'demo-0006'").sort_values("step")
    bars, line, loss = plots.demonstration_visits(MADE["demonstrations"], "demo-0006").data
    assert len(visits) > 1
    assert list(bars.y) == list(visits["rl_alignment"])
    assert line.y[-1] == pytest.approx(visits["rl_alignment"].sum())
    expected = visits["rl_alignment"].sem() * len(visits)
    assert line.error_y.array[-1] == pytest.approx(expected)
    assert list(loss.y) == list(visits["loss"])


def test_layers_stand_in_network_order() -> None:
    shuffled = ["lm_head", "layers.10", "norm", "layers.2", "embed", "other", "layers.0"]
    expected = ["embed", "layers.0", "layers.2", "layers.10", "norm", "lm_head", "other"]
    assert plots.layer_order(shuffled) == expected


def test_the_scatter_hides_the_quality_unless_asked() -> None:
    hidden = text_of(plots.demonstrations_scatter(MADE["demonstrations"]))
    shown = text_of(plots.demonstrations_scatter(MADE["demonstrations"], reveal_quality=True))
    assert "wrong_step" not in hidden and "wrong_step" in shown


def test_the_scatter_shows_the_newest_visit_of_each_demonstration() -> None:
    figure = plots.demonstrations_scatter(MADE["demonstrations"])
    drawn = {
        key: y for trace in figure.data for key, y in zip(trace.customdata, trace.y, strict=True)
    }
    newest = MADE["demonstrations"].groupby("demonstration_id").last()["rl_cosine"]
    assert drawn == newest.to_dict()


def test_a_layers_norm_is_taken_over_all_its_matrices() -> None:
    figure = plots.coordinator_norms(MADE["coordinator"])
    line = next(trace for trace in figure.data if trace.name == "layers.1")
    # two matrices with ‖ΔW‖ = 0.02·step and ‖W‖ = 5 each
    assert np.allclose(line.y, [0.02 * step / 5 for step in (5, 10, 15, 20)])


HOSTILE = "<img src=x onerror=alert(1)> <b>$x^2$ & <a href='javascript:0'>\n"


@pytest.mark.parametrize("name", EVERY_FIGURE)
def test_hostile_text_reaches_no_figure_as_markup(name: str) -> None:
    poisoned = {key: frame.copy() for key, frame in MADE.items()}
    for key, columns in {
        "gain": ["prompt"],
        "demonstrations": ["prompt", "solution", "quality"],
        "coordinator": ["layer", "module"],
    }.items():
        for column in columns:
            poisoned[key][column] = HOSTILE + poisoned[key][column]
    poisoned["commands"]["arguments"] = [{"path": HOSTILE}] * len(poisoned["commands"])
    figure = EVERY_FIGURE[name](poisoned)
    for value in strings_of(figure.to_plotly_json()):
        assert "<img" not in value and "<a " not in value and "$" not in value


def strings_of(value: object) -> list[str]:
    """All strings that Plotly would render in a figure's JSON."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in strings_of(item)]
    if isinstance(value, (list, tuple, np.ndarray)):
        return [text for item in value for text in strings_of(item)]
    return []


def test_token_bars_show_spaces_and_line_breaks() -> None:
    figure = plots.logprob_difference([" a", "\n", "<b>"], [0.1, -0.2, 0.0], [0.01, 0.02, 0.0])
    assert list(figure.layout.xaxis.ticktext) == ["·a", "↵", "&lt;b&gt;"]
    assert list(figure.data[0].y) == [0.1, -0.2, 0.0]


def token_rows(pieces: list[str]) -> pd.DataFrame:
    """A token frame as `probes.tokens.token_frame` gives it, the KL not measured."""
    n = len(pieces)
    return pd.DataFrame(
        {
            "position": range(n),
            "token_id": range(n),
            "token": pieces,
            "probability": np.linspace(0.1, 1.0, n),
            "entropy": 0.5,
            "advantage": -1.0,
            "ratio": 1.0,
            "baseline_ratio": 1.2,
            "kl": np.nan,
            "coordinator_difference": 0.1,
            "written_by": "policy",
            "why": [f"J_RL: 1 < 2 / {i + 1}" for i in range(n)],
        }
    )


class Spans(HTMLParser):
    """What a browser would make of a strip: its tags, titles and text."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.titles: list[str] = []
        self.text = ""
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.titles += [value or "" for name, value in attrs if name == "title"]
        assert {name for name, _ in attrs} <= {"class", "style", "title"}

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("by", plots.COLOURINGS.values())
def test_a_token_strip_shows_hostile_text_as_text(by: plots.Colouring) -> None:
    piece = "<img src=x onerror=alert(1)>\"'"
    read = Spans(plots.token_strip(token_rows([piece, "a b", "\n", ""]), by))
    assert set(read.tags) <= {"div", "p", "b", "span", "i", "br"}
    assert "<img" in read.text.replace("·", " ") and len(read.titles) == 4


def test_a_token_strip_has_all_measured_numbers_on_hover() -> None:
    read = Spans(plots.token_strip(token_rows(["1", "2", "3"])))
    assert "probability 0.55" in read.titles[1] and "coordinator difference 0.1" in read.titles[1]
    assert "KL" not in read.titles[1]
    assert read.titles[1].endswith("\nJ_RL: 1 < 2 / 2")
    read = Spans(plots.token_strip(token_rows(["1"]), "kl"))
    assert "not measured" in read.text


def test_what_another_wrote_is_underlined_and_named() -> None:
    rows = token_rows(["own", "theirs", "own"])
    rows["written_by"] = ["policy", "<b>plan", "policy"]
    strip = plots.token_strip(rows)
    read = Spans(strip)
    assert strip.count("border-bottom") == 1
    assert read.text.endswith("not the policy's own: <b>planown<b>plantheirspolicyown")
    assert [("written by: <b>plan" in title) for title in read.titles] == [False, True, False]
    assert "border-bottom" not in plots.token_strip(token_rows(["own"]))


def test_a_rare_token_is_coloured_and_a_certain_one_is_not() -> None:
    strip = plots.token_strip(token_rows(["rare", "sure"]))
    alphas = [float(a) for a in re.findall(r'span style="background:rgba\(.*?,([\d.]+)\)', strip)]
    assert alphas[0] > 0.6 and alphas[1] == 0.0


def test_a_difference_strip_marks_where_the_texts_part() -> None:
    strip = plots.difference_strip(["a", "<b>", "c"], [0.0, 0.5, -0.5], [0.0, 0.1, 0.1], 1)
    assert strip.count("parting") == 1
    assert re.search(r'class="parting"[^>]*>&lt;b&gt;</span>', strip)
    (span,) = Spans(plots.difference_strip(["a"], [0.5], [])).titles
    assert "+0.5000" in span and "KL" not in span
    ended = plots.difference_strip(["a"], [], [], 1)
    assert "this one ends" in ended


@pytest.mark.parametrize(
    ("values", "dtick"),
    [
        ([1, 900], "D2"),
        ([0.02, 5e3], 1),
        ([1e-9, 10], 2),
        ([0, -1, np.nan, np.inf], "D2"),
        ([], "D2"),
    ],
)
def test_a_log_axis_has_a_tick_for_as_many_values_as_fit(values, dtick) -> None:
    figure = go.Figure()
    log_axis(figure, values)
    assert figure.layout.yaxis.dtick == dtick and figure.layout.yaxis.type == "log"
