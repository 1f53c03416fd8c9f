"""Hostile text wherever a run can hold text: each tab shows it as text and executes none of it."""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.hostile import MARKUP, STRINGS
from workbench.config import RunConfig

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from tests.ui.browser import chromium, enter, launched, new_page, open_tab, served  # noqa: E402

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        chromium() is None and "CI" not in os.environ, reason="no Chromium is installed"
    ),
]

SMALL = RunConfig.preset("pocket").with_changes(
    prompts_per_step=8,
    group_size=4,
    demonstrations_per_step=8,
    max_new_tokens=4,
    paired_gain_every=1,
    paired_prompts=4,
    paired_rollouts=2,
    evaluate_every=0,
    coordinator_every=1,
)
TEXTS = {
    "gain": ["prompt_id", "prompt"],
    "demonstrations": ["demonstration_id", "prompt", "solution", "quality"],
    "findings": ["detector", "message", "setting"],
    "commands": ["outcome"],
}


def poison(folder: Path) -> None:
    """Replace all the text of a run that a model, a data set or a person could have written."""
    strings = itertools.cycle(STRINGS)
    for file in (folder / "rollouts").glob("*.parquet"):
        table = pq.read_table(file)
        rows = table.to_pylist()
        for row in rows:
            for name in ("prompt", "completion", "answer", "extracted", "prompt_id"):
                row[name] = next(strings)
            row["tokens"] = [next(strings) for _ in row["tokens"]]
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
    with closing(sqlite3.connect(folder / "run.sqlite")) as database, database:
        database.execute("DROP TABLE checksums")  # as an earlier workbench would have left it
        database.executemany(
            "INSERT INTO findings (timeline, step, severity, detector, message, evidence, setting)"
            " VALUES (0, 1, 'warning', '', '', ?, '')",
            [(json.dumps({text: text}),) for text in STRINGS],
        )
        database.executemany(
            "INSERT INTO commands (timeline, step, phase, time, name, arguments, outcome)"
            " VALUES (0, 1, 'rollouts', 0, 'set', ?, 'done')",
            [(json.dumps({"rl_weight": text}),) for text in STRINGS],
        )
        for table_name, columns in TEXTS.items():
            rowids = [r for (r,) in database.execute(f'SELECT rowid FROM "{table_name}"')]
            for column in columns:
                if (table_name, column) == ("commands", "outcome"):
                    continue  # 'done' decides what holds
                database.executemany(
                    f'UPDATE "{table_name}" SET "{column}" = ? WHERE rowid = ?',
                    [(next(strings), rowid) for rowid in rowids],
                )
        database.execute("UPDATE commands SET arguments = '{}' WHERE name NOT IN ('set')")
        database.execute("UPDATE commands SET outcome = ? WHERE name = 'set'", (STRINGS[0],))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from workbench.session import Session

    folder = tmp_path_factory.mktemp("hostile") / "run"
    with Session(SMALL, folder) as session:
        session.step()
    poison(folder)
    with served("--run", str(folder)) as address:
        yield address


@pytest.fixture(scope="module")
def page(url: str) -> Iterator[playwright.Page]:
    with launched() as browser:
        yield new_page(browser, url)


def test_every_tab_shows_hostile_text_as_text(page: playwright.Page) -> None:
    seen = []
    for title in page.get_by_role("tab").all_inner_texts():
        open_tab(page, title)
        page.wait_for_timeout(1500)
        for row in page.locator("table tbody tr:visible").all()[:3]:
            row.click(timeout=5000)
            page.wait_for_timeout(500)
        assert page.evaluate("window.__pwned") is None, title
        assert page.locator(MARKUP).count() == 0, title
        seen.append(page.locator("body").inner_text())
    shown = "\n".join(seen)
    for text in STRINGS[:3]:
        assert text in shown


@pytest.mark.parametrize("text", [STRINGS[0], STRINGS[3], STRINGS[6]])
def test_typed_text_is_shown_as_text(page: playwright.Page, text: str) -> None:
    open_tab(page, "Coordinator")
    enter(page, "#prompt textarea", text)
    page.click("#compare")
    page.locator("#effect").get_by_text(text).first.wait_for()
    assert page.evaluate("window.__pwned") is None
    assert page.locator(MARKUP).count() == 0
