"""The app in a real Chromium, over a real run of the pocket model made small."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile import STRINGS
from workbench.config import RunConfig
from workbench.store import open_run

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from tests.ui.browser import (  # noqa: E402
    chromium,
    click_until,
    enter,
    launched,
    new_page,
    open_app,
    open_tab,
    points,
    served,
    wait_for_drawing,
    wait_for_points,
    wait_for_state,
    without_errors,
)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        chromium() is None and "CI" not in os.environ, reason="no Chromium is installed"
    ),
]

HOSTILE = STRINGS[0]

SMALL = RunConfig.preset("pocket").with_changes(
    prompts_per_step=4,
    group_size=4,
    demonstrations_per_step=4,
    max_new_tokens=16,
    paired_gain_every=2,
    paired_prompts=3,
    paired_rollouts=2,
    evaluate_every=2,
    evaluation_prompts=4,
    evaluation_max_new_tokens=16,
    coordinator_every=2,
    token_views_every=2,
)


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("app")
    (folder / "small.toml").write_text(SMALL.to_toml(), encoding="utf-8")
    with served("--run", str(folder / "run"), "--config", str(folder / "small.toml")) as address:
        yield address


@pytest.fixture(scope="module")
def window(browser: playwright.Browser, url: str) -> playwright.Page:
    """One page for all tests: a second one takes seconds more than the first one anew."""
    return new_page(browser, url)


@pytest.fixture
def first_page(window: playwright.Page) -> Iterator[playwright.Page]:
    with without_errors(window):
        yield window


@pytest.fixture(scope="module")
def trained_url(window: playwright.Page, url: str) -> str:
    """The same app, four steps and more into its run."""
    enter(window, "#count input", "4")
    window.click("#step-n")
    wait_for_points(window, "plot-reward", 4)
    wait_for_state(window, "idle")
    return url


@pytest.fixture
def page(window: playwright.Page, trained_url: str) -> Iterator[playwright.Page]:
    """The page opened anew; a request that this breaks off is not an error of a test."""
    open_app(window, trained_url)
    with without_errors(window):
        yield window


def test_pressing_run_moves_the_curves_and_pause_stops_them(first_page: playwright.Page) -> None:
    page = first_page
    assert points(page, "plot-reward") == 0
    assert "What each step" in page.locator("#plot-reward").inner_text()
    page.click("#run")
    wait_for_points(page, "plot-reward", 2)
    page.click("#pause")
    wait_for_state(page, "paused")
    assert points(page, "plot-reward") >= 2


def test_a_zoom_survives_an_update(page: playwright.Page) -> None:
    wait_for_points(page, "plot-reward", 4)
    before = points(page, "plot-reward")
    box = page.locator("#plot-reward .nsewdrag").bounding_box()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.3 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.7 * box["height"], steps=5)
    page.mouse.up()
    ranges = """() => {
        const layout = document.querySelector("#plot-reward .wb-plot")._fullLayout;
        return [...layout.xaxis.range, ...layout.yaxis.range];
    }"""
    zoomed = page.evaluate(ranges)
    page.click("#step")
    wait_for_points(page, "plot-reward", before + 1)
    assert page.evaluate(ranges) == zoomed
    open_tab(page, "Rollouts")
    open_tab(page, "Run")
    page.wait_for_selector("#plot-reward .main-svg")
    assert page.evaluate(ranges) == zoomed


@pytest.mark.parametrize(
    ("tab", "plots"),
    {
        "Cooperative gain": ["plot-gain-time", "plot-gain-heatmap", "plot-gain-prompts"],
        "Gradient alignment": ["plot-cosine", "plot-cosine-layers", "plot-demonstrations"],
        "Coordinator": [
            "plot-coordinator-norms",
            "plot-singular-values",
            "plot-effective-ranks",
            "plot-singular-history",
        ],
    }.items(),
)
def test_each_tab_draws_the_run(page: playwright.Page, tab: str, plots: list[str]) -> None:
    open_tab(page, tab)
    for plot in plots:
        wait_for_drawing(page, plot)


def test_a_prompt_of_the_gain_shows_its_rollouts_side_by_side(page: playwright.Page) -> None:
    open_tab(page, "Cooperative gain")
    page.locator("#gain-table tbody tr").first.click()
    page.locator("#gain-detail").get_by_text("RL-only 1").wait_for()
    assert page.locator("#gain-detail .token-strip").count() == 4


def test_the_gain_is_measured_on_demand(page: playwright.Page) -> None:
    open_tab(page, "Cooperative gain")
    page.click("#measure-gain")
    page.get_by_text("over 3 prompts").wait_for()
    done = int(page.get_by_test_id("progress").inner_text().split()[1])
    page.wait_for_function(
        """step => document.querySelector("#plot-gain-heatmap .wb-plot")
            ._fullData[0].x.includes(String(step))""",
        arg=done + 1,
    )


def test_a_cell_of_the_gain_shows_the_rollouts_of_its_step(page: playwright.Page) -> None:
    open_tab(page, "Cooperative gain")
    wait_for_drawing(page, "plot-gain-heatmap")

    def first_cell() -> tuple[float, float]:
        plot = page.locator("#plot-gain-heatmap .nsewdrag")
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        return box["x"] + 0.02 * box["width"], box["y"] + 0.5 * box["height"]

    shown = page.locator("#gain-detail").get_by_text("step 1: joint policy left")
    click_until(page, first_cell, shown)


def test_a_demonstration_can_be_read(page: playwright.Page) -> None:
    open_tab(page, "Gradient alignment")
    row = page.locator("#demonstration-table tbody tr").first
    row.click()
    page.locator("#demonstration-detail").get_by_text(row.get_attribute("data-id")).wait_for()


def test_the_ledger_ranks_and_shows_the_visits_and_saves_the_suspects(
    page: playwright.Page,
) -> None:
    open_tab(page, "Gradient alignment")
    page.locator("#demonstration-table tbody tr").first.wait_for()
    page.get_by_role("button", name="contribution").click()
    column = "#demonstration-table tbody tr td:nth-child(5)"
    found = [float(text) for text in page.locator(column).all_inner_texts()]
    assert len(found) >= 8 and found == sorted(found, reverse=True)
    page.locator("#demonstration-table tbody tr").first.click()
    wait_for_drawing(page, "plot-visits")
    enter(page, "#suspects input", "3")
    with page.expect_download() as download:
        page.click("#export-suspects")
    lines = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["rank"] for line in lines] == [1, 2, 3]
    contradicted = page.locator("#demonstration-table tbody tr td:nth-child(9)")
    assert set(contradicted.all_inner_texts()) == {"–"}
    page.click("#ask-answers")
    page.locator("#demonstration-detail").get_by_text("rollouts").wait_for()
    page.get_by_role("button", name="rank", exact=True).dblclick()  # the highest, then the lowest
    votes = [float(text.replace("−", "-")) for text in contradicted.all_inner_texts()]
    assert votes == sorted(votes, reverse=True) and votes[0] > votes[-1]
    with page.expect_download() as download:
        page.click("#export-suspects")
    lines = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
    exported = [json.loads(line)["disagreement"] for line in lines]
    assert exported == pytest.approx(votes[:3], abs=0.0051)  # shown to 2 places
    page.click("#forget-answers")


def test_the_cost_of_each_probe_is_told(page: playwright.Page) -> None:
    costs = page.locator("#probe-costs tbody")
    assert "every 2 steps" in costs.locator("tr", has_text="paired gain").inner_text()
    assert "off" in costs.locator("tr", has_text="rollout alignment").inner_text()


def test_the_policies_are_evaluated_side_by_side_on_demand(page: playwright.Page) -> None:
    open_tab(page, "Evaluations")
    enter(page, "#evaluate-limit input", "4")
    page.click("#evaluate")
    scores = page.locator("#evaluation-scores tbody tr")
    scores.nth(3).wait_for()
    assert scores.count() == 4  # joint, off, baseline, base
    page.locator("#evaluation-problems tbody tr").nth(3).click()
    page.locator("#evaluation-texts .wb-pair").get_by_text("baseline").wait_for()


def test_a_rollout_is_written_again_by_another_policy(page: playwright.Page) -> None:
    open_tab(page, "Rollouts")
    page.locator("#rollout-table tbody tr").nth(1).click()
    page.locator("#rollout-detail").get_by_text("Rollout 1").wait_for()
    page.click("#what-ask")
    page.locator("#what-texts").get_by_text("on its own noise").wait_for()
    assert page.locator("#what-texts .token-strip").count() == 2
    wait_for_drawing(page, "plot-counterfactual")
    page.locator("#what-weights input").click()
    page.get_by_role("option", name="snapshot of step 0").click()
    page.click("#what-ask")
    page.locator("#what-texts").get_by_text("step 0").first.wait_for()


def test_a_pasted_text_is_written_again_on_noise_in_hindsight(page: playwright.Page) -> None:
    open_tab(page, "Rollouts")
    page.get_by_label("a pasted text").check()
    enter(page, "#what-prompt textarea", "1+2=?\n")
    enter(page, "#what-completion textarea", HOSTILE)
    page.click("#what-ask")
    page.locator("#what-texts").get_by_text("on noise drawn in hindsight").first.wait_for()
    assert page.locator("#what-texts .token-strip").count() == 4
    assert page.locator("img[src=x]").count() == 0
    assert page.evaluate("window.__pwned") is None


def test_a_rollout_shows_its_tokens_in_the_colour_asked_for(page: playwright.Page) -> None:
    open_tab(page, "Rollouts")
    page.locator("#rollout-table tbody tr").nth(2).click()
    page.locator("#rollout-detail").get_by_text("Rollout 2").wait_for()
    tokens = page.locator("#rollout-detail .tokens span")
    assert "probability" in tokens.first.get_attribute("title")
    page.locator("#by input").click()
    page.get_by_role("option", name="entropy").click()
    page.locator("#rollout-detail").get_by_text("entropy of the policy").wait_for()
    assert tokens.count() >= 1


def test_the_rollouts_can_be_sorted(page: playwright.Page) -> None:
    open_tab(page, "Rollouts")
    page.locator("#rollout-table tbody tr").first.wait_for()
    page.get_by_role("button", name="length").click()
    lengths = page.locator("#rollout-table tbody tr td:nth-child(7)").all_inner_texts()
    assert len(lengths) >= 16
    assert [int(text) for text in lengths] == sorted(map(int, lengths), reverse=True)


def test_the_coordinator_is_compared_off_on_and_scaled(page: playwright.Page) -> None:
    open_tab(page, "Coordinator")
    enter(page, "#scale input[type=number]", "1.5")
    page.locator("#scale input[type=number]").press("Tab")
    page.click("#compare")
    page.locator("#effect").get_by_text("scaled, scale 1.5").first.wait_for()
    assert page.locator("#effect").get_by_text("on, scale 1").count() == 2
    wait_for_drawing(page, "plot-difference")
    page.locator("#against").get_by_label("the start of the run").check()
    page.click("#compare")
    page.locator("#effect").get_by_text("the policy at the start").first.wait_for()


def test_a_setting_is_changed_and_marked(page: playwright.Page) -> None:
    enter(page, "#knob-rl_weight input[type=number]", "0.7")
    page.locator("#knob-rl_weight input[type=number]").press("Tab")
    page.click("#apply")
    page.get_by_text("From the next step on: rl_weight = 0.7").wait_for()
    page.locator("#plot-reward").get_by_text("rl_weight=0.7").wait_for()


def test_rewinding_too_far_is_told_in_one_line(page: playwright.Page) -> None:
    page.get_by_role("button", name="Rewind or fork").click()
    enter(page, "#at-step input", "999")
    page.click("#rewind")
    page.locator(".toast-body").get_by_text("999").wait_for()


def test_a_reload_finds_the_same_run(window: playwright.Page, trained_url: str) -> None:
    wait_for_points(window, "plot-reward", 4)
    before = window.get_by_test_id("progress").inner_text()
    window.reload(wait_until="domcontentloaded")
    wait_for_points(window, "plot-reward", 4)
    assert window.get_by_test_id("progress").inner_text() == before


def test_two_browsers_see_the_same_session(
    page: playwright.Page, browser: playwright.Browser, trained_url: str
) -> None:
    other = new_page(browser, trained_url)
    wait_for_points(other, "plot-reward", 4)
    before = points(other, "plot-reward")
    page.click("#step")
    wait_for_points(page, "plot-reward", before + 1)
    wait_for_points(other, "plot-reward", before + 1)
    other.close()


def test_a_fork_starts_at_a_step_and_a_rewind_goes_back_to_it(
    page: playwright.Page, tmp_path: Path
) -> None:
    page.get_by_role("button", name="Rewind or fork").click()
    enter(page, "#at-step input", "2")
    enter(page, "#fork-folder textarea", str(tmp_path / "forked"))
    page.click("#fork")
    page.get_by_text("Forked. Open it with").wait_for()
    forked = open_run(tmp_path / "forked")
    assert (forked.last_step(), forked.meta["forked_from"]["step"]) == (2, 2)
    page.click("#rewind")
    page.get_by_test_id("progress").get_by_text("step 2", exact=True).wait_for()
    page.locator("#plot-reward").get_by_text("rewind").wait_for()
    assert points(page, "plot-reward") == 2


def test_a_demonstration_is_set_aside_and_taken_back(page: playwright.Page) -> None:
    open_tab(page, "Gradient alignment")
    page.locator("#demonstration-table tbody tr").first.click()
    page.click("#set-aside")
    page.locator("#demonstration-detail").get_by_text("set aside").wait_for()
    page.click("#take-back")
    page.locator("#demonstration-detail").get_by_text("set aside").wait_for(state="detached")
