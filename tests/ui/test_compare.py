"""The tab Compare in a real Chromium, over two runs of the pocket model made small."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from workbench.config import RunConfig
from workbench.session import Session

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from tests.ui.browser import (  # noqa: E402
    chromium,
    launched,
    new_page,
    open_tab,
    served,
    wait_for_drawing,
    without_errors,
)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        chromium() is None and "CI" not in os.environ, reason="no Chromium is installed"
    ),
]

SMALL = RunConfig.preset("pocket").with_changes(
    prompts_per_step=3,
    group_size=4,
    demonstrations_per_step=3,
    max_new_tokens=16,
    alignment_every=0,
    paired_gain_every=0,
    evaluate_every=0,
    coordinator_every=0,
    token_views_every=0,
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("runs")
    for method in ("grpo", "bridge"):
        with Session(SMALL.with_changes(method=method), folder / method) as session:
            session.step()
    with served("--run", str(folder / "bridge")) as address:
        yield address


def names(page: playwright.Page) -> list[str]:
    """The curves of the overlay."""
    return page.evaluate(
        "() => document.querySelector('#plot-compare .wb-plot')._fullData.map((c) => c.name)"
    )


def test_two_runs_beside_each_other(url: str) -> None:
    with launched() as browser:
        page = new_page(browser, url)
        with without_errors(page):
            open_tab(page, "Compare")
            wait_for_drawing(page, "plot-compare")
            assert names(page) == ["bridge"]
            for field in ("#compare-runs", "#compare-second"):
                page.locator(f"{field} input").fill("grpo")
                page.locator(f"{field} input").press("Enter")
            page.wait_for_function(
                "() => document.querySelector('#plot-compare .wb-plot')._fullData.length === 2"
            )
            assert names(page) == ["bridge", "grpo"]
            settings = page.locator("#compare-settings tbody tr")
            settings.first.wait_for()
            assert settings.all_inner_texts() == ["method\tbridge\tgrpo"]
            prompts = page.locator("#compare-gain tbody tr")
            prompts.nth(2).wait_for()  # both runs met the same three prompts
            asked = prompts.first.inner_text().split("\t")[0]
            prompts.first.click()
            page.locator("#compare-texts h4").nth(9).wait_for()
            titles = page.locator("#compare-texts h4").all_inner_texts()
            cards = [title for title in titles if title.startswith("step 1, train")]
            assert [title for title in titles if title not in cards] == ["bridge", "grpo"]
            assert asked.endswith("=?") and len(cards) == 2 * 4
