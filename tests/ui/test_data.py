"""The Data tab: its looks, its HTML, and the tab in a real Chromium."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from workbench import RunConfig, Session
from workbench.inspecting import Seen
from workbench.tasks import Score
from workbench.ui import LAUNCH, build_app
from workbench.ui.data import data_note, data_table, overlap_table, score_html, seen_html
from workbench.worker import SessionError

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from tests.ui.browser import (  # noqa: E402
    chromium,
    enter,
    launched,
    new_page,
    open_tab,
    served,
    without_errors,
)

HOSTILE = "<img src=x onerror=window.__pwned=1>"
ROWS = [
    {"prompt": f"{n}+{n}=?", "solution": f"{n}+{n}={2 * n}\n#{2 * n}", "answer": 2 * n}
    for n in range(10, 30)
]
CONFIG = RunConfig().with_changes(
    task={
        "kind": "dataset",
        "data": [*ROWS, {"prompt": HOSTILE, "solution": f"{HOSTILE}\n#1", "answer": 1}],
        "answer_pattern": r"#(-?\d+)",
        "rewards": [{"kind": "task", "weight": 3}, {"kind": "pattern", "pattern": "#"}],
        "max_prompt_tokens": 200,
    }
)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    with Session(CONFIG, tmp_path_factory.mktemp("data") / "run") as session:
        yield session


def test_data_with_lengths_as_the_model_counts_them(session: Session) -> None:
    data = session.data()
    counts = data["split"].value_counts()
    assert counts["train"] + counts["validation"] == 21
    assert counts["demonstrations"] == counts["train"]
    shown = data[data["split"] == "demonstrations"].iloc[0]
    seen = session.seen(shown["prompt"], shown["solution"])
    assert shown["prompt"] in "".join(seen.prompt)
    assert "".join(seen.solution).startswith(shown["solution"])
    assert len(seen.prompt_ids) == shown["prompt_tokens"]
    assert len(seen.solution_ids) == shown["solution_tokens"]
    assert session.dropped() == {"train": 0, "demonstrations": 0, "validation": 0, "hard": 0}


def test_any_completion_is_scored_part_by_part(session: Session) -> None:
    right = session.score("#20", "10+10=?")
    assert (right.reward, right.parts, right.extracted) == (1.0, {"task": 1, "pattern": 1}, "20")
    assert session.score("#21", "10+10=?").reward == 0.25
    assert session.score("#7", "never asked", "7").reward == 1.0
    with pytest.raises(SessionError, match="no prompt of the task"):
        session.score("#7", "never asked")


def test_overlaps_of_a_session(session: Session) -> None:
    assert session.overlaps().empty  # a prompt is in one split only
    near = session.overlaps(n=2, least=0.2)  # '=?' is common to all
    assert set(near["kind"]) == {"n-gram"}
    assert near["share"].is_monotonic_decreasing
    with pytest.raises(SessionError, match="n must be at least 1"):
        session.overlaps(n=0)


def test_texts_are_escaped_wherever_they_are_shown(session: Session) -> None:
    seen = Seen([1], [HOSTILE], [2], [HOSTILE])
    found = Score(0.5, HOSTILE, {HOSTILE: 0.5}, HOSTILE)
    for markup in (seen_html(HOSTILE, seen), score_html(found, HOSTILE)):
        assert "<img" not in markup
    table = data_table(session.data(), "demonstrations")
    assert HOSTILE in table  # as data: the table's script writes text, never markup
    assert "No overlaps" in overlap_table(session.overlaps())
    assert "3 left out" in data_note(session.data(), {"train": 3}, "train")


@pytest.mark.browser
@pytest.mark.skipif(chromium() is None and "CI" not in os.environ, reason="no Chromium")
def test_the_tab_shows_tokens_and_scores(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(CONFIG.to_toml(), encoding="utf-8")
    flags = ("--run", str(tmp_path / "run"), "--config", str(tmp_path / "config.toml"))
    with served(*flags) as url, launched() as browser:
        page = new_page(browser, url)
        with without_errors(page):
            open_tab(page, "Data")
            page.locator("#data-table tbody tr").first.wait_for()
            page.locator("#data-split").get_by_text("demonstrations").click()
            hostile = page.locator("#data-table tbody tr").filter(has_text="onerror")
            if hostile.count() == 0:  # it fell into validation
                page.locator("#data-split").get_by_text("validation").click()
            hostile.first.click()
            page.locator("#data-detail .token-strip").wait_for()
            assert "onerror" in page.locator("#data-detail").inner_text().replace("\n", "")
            enter(page, "#score-completion textarea", "so\n#1")
            page.click("#score")
            page.locator("#scored .wb-reward").wait_for()
            assert "reward 1" in page.locator("#scored").inner_text()
            assert "pattern: 1" in page.locator("#scored").inner_text()
            page.click("#overlaps")
            page.locator("#overlap-table").get_by_text("No overlaps found").wait_for()
            assert page.evaluate("window.__pwned") is None


@pytest.mark.browser
@pytest.mark.skipif(chromium() is None and "CI" not in os.environ, reason="no Chromium")
def test_the_chosen_split_is_shown_though_the_first_draw_ends_last(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, read = threading.Event(), session.data
    asked: list[str] = []

    def slow_at_first() -> pd.DataFrame:
        asked.append("")
        if len(asked) == 1:
            ended.wait(60)
        return read()

    monkeypatch.setattr(session, "data", slow_at_first)
    app = build_app(session)
    _, url, _ = app.launch(prevent_thread_lock=True, quiet=True, **LAUNCH)
    try:
        with launched() as browser:
            page = new_page(browser, url.rstrip("/"))
            open_tab(page, "Data")
            page.locator("#data-split").get_by_text("demonstrations").click()
            rows = page.locator("#data-table tbody")
            chosen = "() => document.querySelector('#data-table').innerText.includes('#20')"
            page.wait_for_function(chosen)  # a solution: drawn while the first draw waits
            ended.set()
            page.wait_for_timeout(3000)  # the first draw lands, and is put right
            page.wait_for_function(chosen)
            assert "10+10=20" in rows.inner_text()
            assert len(asked) >= 3
    finally:
        ended.set()
        app.close()


def test_gradio_does_not_sum_up_all_its_events_after_each(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MAX_EVENTS", "CACHE_FREQUENCY"):
        monkeypatch.delenv(f"GRADIO_ANALYTICS_{name}", raising=False)
    queue = build_app(session)._queue
    before, queue.events_recorded = queue.cached_event_analytics_summary, 900
    event = {"time": 0.0, "status": "success", "process_time": 0.1, "function": "tick"}
    assert queue.compute_analytics_summary([event] * 900) is before
    assert queue.ANALYTICS_MAX_EVENTS == 100
