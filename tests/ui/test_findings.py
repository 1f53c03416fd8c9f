"""Findings in a real browser: seen, opened, left open while the run goes on, and never markup."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workbench.config import RunConfig
from workbench.records import Finding
from workbench.session import Session
from workbench.store import RunStore

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from tests.ui.browser import (  # noqa: E402
    chromium,
    enter,
    launched,
    new_page,
    served,
    wait_for_points,
    wait_for_state,
)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        chromium() is None and "CI" not in os.environ, reason="no Chromium is installed"
    ),
]

HOSTILE = "<img src=x onerror=window.__pwned=1>"


def test_a_finding_is_told_opened_and_stays_open(tmp_path: Path) -> None:
    config = RunConfig.preset(
        "pocket", method="sft", demonstrations_per_step=2, evaluate_every=0, snapshot_every=50
    )
    with Session(config, tmp_path / "run"):
        pass
    with RunStore.open(tmp_path / "run") as store:
        store.add_finding(
            Finding(
                step=0,
                severity="critical",
                detector="loss_spike",
                message=f"loss/sft is 9 {HOSTILE}",
                evidence={"metric": "loss/sft", "value": 9.0, HOSTILE: HOSTILE},
                setting="base_lr",
                since=1,
                key="loss_spike@0",
                causes=[HOSTILE],
                suggestion={"base_lr": 1e-5},
            )
        )
    with served("--run", str(tmp_path / "run")) as url, launched() as browser:
        page = new_page(browser, url)
        line = page.get_by_test_id("found")
        line.wait_for()
        assert line.inner_text() == f"1 critical: loss/sft is 9 {HOSTILE}"
        item = page.locator("#findings li")
        assert item.get_attribute("data-key") == "loss_spike@0"
        change = item.get_by_text("base_lr = 1e-05")
        assert not change.is_visible()
        item.locator("summary").click()
        change.wait_for()
        assert "since step 1" in item.inner_text() and HOSTILE in item.inner_text()
        enter(page, "#count input", "2")
        page.click("#step-n")
        wait_for_points(page, "plot-loss", 2)
        wait_for_state(page, "idle")
        assert change.is_visible()  # the page was drawn anew around it
        assert page.evaluate("window.__pwned") is None
        assert page.locator("#plot-loss").get_by_text("▲").count() == 1
