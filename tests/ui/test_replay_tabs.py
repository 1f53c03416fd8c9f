"""The tabs Replay and Branches, and the buttons on a finding, in a real Chromium."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from workbench.records import Finding
from workbench.store import RunStore, open_run

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from tests.ui.browser import (  # noqa: E402
    chromium,
    enter,
    launched,
    new_page,
    open_tab,
    served,
    wait_for_drawing,
    wait_for_points,
    wait_for_state,
    without_errors,
)
from tests.ui.test_app import HOSTILE, SMALL  # noqa: E402

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        chromium() is None and "CI" not in os.environ, reason="no Chromium is installed"
    ),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps, a rewind to 2 with another λ, a finding whose texts are hostile."""
    from workbench.session import Session

    folder = tmp_path_factory.mktemp("replay") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # as in the app: sums depend on the number of threads
        with Session(SMALL.with_changes(snapshot_every=2), folder) as session:
            session.run(4)
            session.rewind(2)
            session.set(rl_weight=0.9)
            session.run(2)
            session.fork(folder.with_name("fork"), step=3, base_lr=1e-3).close()
    finding = Finding(
        4,
        "warning",
        "truncation",
        HOSTILE,
        {"share": HOSTILE},
        "max_new_tokens",
        since=4,
        key="truncation@4",
        suggestion={"max_new_tokens": 24},
    )
    with RunStore.open(folder) as store:
        store.add_finding(finding)
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> Iterator[playwright.Page]:
    """A page whose console must stay without errors."""
    with served("--run", str(run)) as url, launched() as browser:
        page = new_page(browser, url)
        with without_errors(page):
            yield page


def test_a_step_is_replayed_and_is_identical(page: playwright.Page) -> None:
    open_tab(page, "Replay")
    enter(page, "#replay-step input", "3")
    page.click("#replay")
    page.get_by_test_id("identical").get_by_text("identical", exact=True).wait_for()
    page.locator("#replay-said").get_by_text("Replay of step 3").wait_for()
    for plot in ("plot-layer-gradients", "plot-layer-activations", "plot-updates"):
        wait_for_drawing(page, plot)
    assert page.locator("#replay-texts .token-strip").count() == 3
    page.locator("#replay-differences").get_by_text("No number differs").wait_for()


def test_what_if_lists_the_differences(page: playwright.Page) -> None:
    open_tab(page, "Replay")
    enter(page, "#replay-changes textarea", "rl_weight=0.2 base_lr=1e-3")
    page.click("#replay")
    page.get_by_test_id("identical").get_by_text("different").wait_for()
    page.locator("#replay-differences tr[data-id=rl_weight]").wait_for()
    enter(page, "#replay-second textarea", "rl_weight=0.8")
    page.click("#replay")
    page.locator("#replay-said").get_by_text("with rl_weight=0.8").wait_for()
    row = page.locator("#replay-differences tr[data-id='metric/rl_weight']")
    row.get_by_text("0.8", exact=True).wait_for()
    page.locator("#plot-updates").get_by_text("θ, second").wait_for()
    enter(page, "#replay-changes textarea", "rl_wait=1")
    page.click("#replay")
    page.locator(".toast-body").get_by_text("did you mean 'rl_weight'").wait_for()


def test_branches_are_drawn_and_listed(page: playwright.Page) -> None:
    open_tab(page, "Branches")
    wait_for_drawing(page, "plot-branches")
    page.locator("#branch-table tr[data-id='run ↶1']").get_by_text("rl_weight=0.9").wait_for()
    page.locator("#branch-table tr[data-id=fork]").get_by_text("base_lr=0.001").wait_for()
    enter(page, "#branch-metric input", "kl")
    page.locator("#branch-metric input").press("Enter")
    page.locator("#plot-branches").get_by_text("kl of the branches").wait_for()


def test_a_finding_leads_to_its_samples_the_step_before_and_a_fork(
    page: playwright.Page, run: Path
) -> None:
    open_tab(page, "Run")
    page.click("#finding-samples")
    page.locator("#finding-shown").get_by_text("Rollout").first.wait_for()
    page.click("#finding-before")
    page.get_by_text("It still was well after step 2 (snapshot 2)").wait_for()
    page.click("#finding-fork")
    page.get_by_text("Forked. Open it with").wait_for()
    (made,) = run.parent.glob("run-truncation-from-2-*")
    forked = open_run(made)
    assert forked.last_step() == 2 and forked.config.sampling.max_new_tokens == 24
    wait_for_state(page, "idle")
    assert page.locator("img[src=x]").count() == 0
    assert page.evaluate("window.__pwned") is None


def test_a_second_app_reads_the_run_and_follows_it(page: playwright.Page, run: Path) -> None:
    with served("--run", str(run)) as url:
        other = new_page(page.context.browser, url)
        other.get_by_test_id("read-only").get_by_text("has it open").wait_for()
        assert other.locator("#run").is_disabled() and other.locator("#apply").is_disabled()
        wait_for_points(other, "plot-reward", 4)
        open_tab(page, "Run")
        page.click("#step")
        wait_for_points(other, "plot-reward", 5)
        open_tab(other, "Data")
        other.locator("#data-table").get_by_text("This page only reads the run").wait_for()
        other.close()
