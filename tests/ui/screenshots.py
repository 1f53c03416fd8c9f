"""Take the pictures of the app: `python -m tests.ui.screenshots OUT [--run DIR] [--steps 30]`.

Runs the pocket preset (or goes on with a run folder) for so many steps, then saves every tab at
1440 x 900, light and dark, as OUT/run-light.png and so on. README's docs/app.png is run-light.png.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page

from tests.ui.browser import (
    launched,
    new_page,
    open_tab,
    served,
    wait_for_drawing,
    wait_for_state,
)


def gain(page: Page) -> None:
    """The tab Cooperative gain, with one prompt's rollouts."""
    wait_for_drawing(page, "plot-gain-heatmap")
    page.locator("#gain-table tbody tr").first.click()
    page.locator("#gain-detail .wb-couples").wait_for()


def alignment(page: Page) -> None:
    """The tab Gradient alignment, with one demonstration."""
    wait_for_drawing(page, "plot-demonstrations-time")
    page.locator("#demonstration-table tbody tr").first.click()
    page.locator("#demonstration-detail .wb-card").wait_for()


def coordinator(page: Page) -> None:
    """The tab Coordinator, with one comparison."""
    page.locator("#scale input[type=number]").fill("2")
    page.locator("#scale input[type=number]").press("Tab")
    page.click("#compare")
    page.locator("#effect .wb-card").first.wait_for()
    wait_for_drawing(page, "plot-coordinator-norms")
    wait_for_drawing(page, "plot-difference")


def rollouts(page: Page) -> None:
    """The tab Rollouts, with one rollout's tokens."""
    page.locator("#rollout-table tbody tr").nth(4).click()
    page.locator("#rollout-detail").get_by_text("Rollout 4").wait_for()


def data(page: Page) -> None:
    """The tab Data, with one demonstration token by token."""
    page.locator("#data-split").get_by_text("demonstrations").click()
    page.locator("#data-table tbody tr[data-id^=demonstrations]").first.click()
    page.locator("#data-detail .token-strip").wait_for()


def replay(page: Page) -> None:
    """The tab Replay, with two replays of the last step side by side."""
    page.locator("#replay-changes textarea").fill("rl_weight=0.2")
    page.locator("#replay-second textarea").fill("rl_weight=0.9")
    page.click("#replay")
    wait_for_drawing(page, "plot-updates")


def branches(page: Page) -> None:
    """The tab Branches."""
    wait_for_drawing(page, "plot-branches")


def compare(page: Page) -> None:
    """The tab Compare."""
    wait_for_drawing(page, "plot-compare")


TABS = {
    "Cooperative gain": gain,
    "Gradient alignment": alignment,
    "Coordinator": coordinator,
    "Rollouts": rollouts,
    "Data": data,
    "Replay": replay,
    "Branches": branches,
    "Compare": compare,
}


def pictures(browser: Browser, url: str, out: Path, theme: str) -> None:
    """Save every tab in one theme, as first seen and, where it is longer, whole."""
    page = new_page(browser, url, theme)
    wait_for_drawing(page, "plot-reward")
    page.wait_for_timeout(1500)
    page.screenshot(path=out / f"run-{theme}.png")
    page.screenshot(path=out / f"run-{theme}-whole.png", full_page=True)
    for title, show in TABS.items():
        open_tab(page, title)
        show(page)
        page.mouse.move(0, 0)
        page.wait_for_timeout(1500)
        name = title.split()[-1].lower()
        page.screenshot(path=out / f"{name}-{theme}.png")
        page.screenshot(path=out / f"{name}-{theme}-whole.png", full_page=True)
    page.close()


def main() -> None:
    """Parse the flags, run the app, take the pictures."""
    parser = argparse.ArgumentParser(description="Take the pictures of the app.")
    parser.add_argument("out", type=Path, help="folder for the pictures")
    parser.add_argument("--run", help="a run folder to show (default: a new pocket run)")
    parser.add_argument("--steps", type=int, default=30, help="steps to make first; 0: none")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, launched() as browser:
        with served("--run", options.run or f"{folder}/pocket") as url:
            page = new_page(browser, url)
            if options.steps:
                page.locator("#count input").fill(str(options.steps))
                page.click("#step-n")
                wait_for_state(page, "running")
                page.set_default_timeout(0)  # as long as it takes
                wait_for_state(page, "idle")
            page.close()
            for theme in ("light", "dark"):
                pictures(browser, url, options.out, theme)


if __name__ == "__main__":
    main()
