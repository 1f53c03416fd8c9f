"""The real app in a process of its own, and a real Chromium to look at it with."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Error,
    Locator,
    Page,
    TimeoutError,
    sync_playwright,
)

ROOT = Path(__file__).parents[2]
PATIENCE = 120_000  # ms; a busy machine may take long, and nothing here measures time
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
]


def chromium() -> str | None:
    """Where Chromium is; None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@contextmanager
def served(*flags: str) -> Iterator[str]:
    """Run `python app.py` with flags; gives the page's address.

    It must say no traceback while it is used, and Ctrl-C must end it well.
    """
    process = subprocess.Popen(
        [sys.executable, "app.py", *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )
    said: list[str] = []
    opened = Event()

    def listen() -> None:
        for line in process.stdout or ():
            said.append(line)
            if line.startswith("open http"):
                opened.set()
        opened.set()

    listener = Thread(target=listen)
    listener.start()
    opened.wait()
    try:
        found = [match[1] for line in said if (match := re.match(r"open (http\S+)/ ", line))]
        assert found, "the app did not start:\n" + "".join(said)
        yield found[0]
        used = "".join(said)
    finally:
        process.send_signal(signal.SIGINT)
        listener.join(timeout=PATIENCE / 1000)
        process.wait(timeout=PATIENCE / 1000)
    everything = "".join(said)
    assert process.returncode == 0, everything
    assert "Traceback" not in used, used
    assert ("saved at step" in everything) != ("\nreading " in f"\n{everything}")


@contextmanager
def launched() -> Iterator[Browser]:
    """A headless Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=FLAGS, timeout=PATIENCE
        )
        yield browser
        browser.close()


def new_page(browser: Browser, url: str, theme: str = "light") -> Page:
    """A page on the app, opened and drawn."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.set_default_timeout(PATIENCE)
    open_app(page, url, theme)
    return page


def open_app(page: Page, url: str, theme: str = "light") -> None:
    """Go to the app, anew if the page is there already, and wait until it is drawn."""
    page.goto(f"{url}/?__theme={theme}", wait_until="domcontentloaded")
    page.wait_for_selector("#plot-reward .main-svg")


@contextmanager
def without_errors(page: Page) -> Iterator[None]:
    """The page's console must stay without errors."""
    wrong: list[str] = []

    def listen(said: ConsoleMessage) -> None:
        if said.type == "error":
            wrong.append(said.text)

    def caught(error: Error) -> None:
        wrong.append(str(error))

    page.on("console", listen)
    page.on("pageerror", caught)
    yield
    page.remove_listener("console", listen)
    page.remove_listener("pageerror", caught)
    assert wrong == []


def points(page: Page, plot: str) -> int:
    """How many points the first curve of a live plot has; 0 for a hint."""
    return page.evaluate(
        "name => (document.querySelector(`#${name} .wb-plot`)._fullData[0] || {x: []}).x.length",
        plot,
    )


def wait_for_points(page: Page, plot: str, count: int) -> None:
    """Wait until the first curve of a live plot has at least so many points."""
    page.wait_for_function(
        """([name, count]) => {
            const curves = (document.querySelector(`#${name} .wb-plot`) || {})._fullData;
            return curves && curves[0] && curves[0].x.length >= count;
        }""",
        arg=[plot, count],
    )


def wait_for_drawing(page: Page, plot: str) -> None:
    """Wait until a live plot shows data, not a hint."""
    page.wait_for_function(
        """name => {
            const curves = (document.querySelector(`#${name} .wb-plot`) || {})._fullData;
            return curves && curves.some((curve) => curve.x.length > 0);
        }""",
        arg=plot,
    )


def open_tab(page: Page, title: str) -> None:
    """Click a tab."""
    page.get_by_role("tab", name=title, exact=True).click()


def wait_for_state(page: Page, *states: str) -> None:
    """Wait until the header says one of the states."""
    pattern = re.compile(f"^({'|'.join(states)})$")
    page.get_by_test_id("state").filter(has_text=pattern).wait_for()


def enter(page: Page, field: str, text: str) -> None:
    """Fill a field and see that it stays: gradio empties what it is still laying out."""
    for _ in range(20):
        page.locator(field).fill(text)
        page.wait_for_timeout(300)
        if page.locator(field).input_value() == text:
            return
    raise AssertionError(f"{field} does not keep {text!r}")


def click_until(page: Page, place: Callable[[], tuple[float, float]], seen: Locator) -> None:
    """Click a place of a plot until something is seen: one that is just redrawn hears no click."""
    for _ in range(20):
        x, y = place()
        page.mouse.move(x, y)
        page.wait_for_timeout(200)  # Plotly looks for the point under the mouse ten times a second
        page.mouse.click(x, y)
        try:
            seen.wait_for(timeout=PATIENCE / 20)
        except TimeoutError:
            continue
        return
    raise AssertionError("no click was heard")
