"""The app: tabs over one Session, polled once a second, drawn only where something changed.

The Session lives in the closure, so every browser sees the same one, and a reload finds it again. A
browser remembers what it has been shown (two strings in gr.State); only the open tab is drawn.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import gradio as gr

from workbench.heap import give_back
from workbench.session import Session
from workbench.ui import (
    alignment,
    branches,
    compare,
    coordinator,
    data,
    evaluations,
    gain,
    replay,
    rollouts,
    run,
)
from workbench.ui.header import header_html
from workbench.ui.parts import Updates, Values, View, page
from workbench.ui.read_only import ReadOnlySession
from workbench.ui.theme import CSS, THEME

TABS = (
    run,
    gain,
    alignment,
    coordinator,
    rollouts,
    data,
    evaluations,
    replay,
    branches,
    compare,
)
"""The tabs, left to right: modules with TITLE and build(session)."""

READS = ("export-suspects", "finding-samples")
"""Buttons that read the run's folder only."""

LAUNCH: dict[str, Any] = {
    "theme": THEME,
    "css": CSS,
    "footer_links": [],
    "ssr_mode": False,
    "show_error": True,
}
"""How the app wants to be launched: build_app(session).launch(**LAUNCH)."""


def build_app(session: Session) -> gr.Blocks:
    """The whole page for one session. Launch it with `LAUNCH`."""
    with gr.Blocks(
        title=f"{session.run_dir.name}: BRIDGE workbench", analytics_enabled=False, fill_width=True
    ) as app:
        header = page(header_html(session), "header")
        opened = gr.State(run.TITLE)
        shown = gr.State("")  # what the open tab was drawn from
        views: dict[str, View] = {}
        tabs: dict[str, Any] = {}
        with gr.Tabs(elem_id="tabs"):
            for module in TABS:
                with gr.Tab(module.TITLE, id=module.TITLE) as tabs[module.TITLE]:
                    views[module.TITLE] = module.build(session)
        if isinstance(session, ReadOnlySession):
            _leave_only_reading(app)
        inputs = {opened, shown}.union(*(view.inputs for view in views.values()))
        outputs = {header, opened, shown}.union(*(view.outputs for view in views.values()))

        def opener(title: str) -> Callable[[Values], Updates]:
            def draw(values: Values) -> Updates:
                contents = views[title].draw(values)
                return contents | {
                    header: header_html(session),
                    opened: title,
                    shown: f"{session.version} {contents_key(session)}",
                }

            return draw

        def tick(values: Values) -> Any:
            before_version, _, before_contents = values[shown].partition(" ")
            version = str(session.version)
            if before_version == version:
                return gr.skip()
            contents = contents_key(session)
            updates: Updates = {header: header_html(session), shown: f"{version} {contents}"}
            if contents != before_contents:
                updates |= views[values[opened]].draw(values)
            return updates

        wire: dict[str, Any] = {
            "show_progress": "hidden",
            "api_visibility": "private",
            "concurrency_limit": 4,
        }
        for title, tab in tabs.items():
            tab.select(opener(title), inputs, outputs, **wire)
        app.load(opener(run.TITLE), inputs, outputs, **wire)
        gr.Timer(1.0).tick(tick, inputs, outputs, **wire)

        async def forget(request: gr.Request) -> None:  # in the event loop: no event half-way
            forget_copies(app, request.session_hash or "")
            give_back()

        gr.Timer(5.0).tick(forget, None, None, **wire)
    # gradio (6.31) would make a table of its newest 10,000 events after each one, for a page of its
    # own that nobody opens: a page of ours makes an event a second
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000")
    app.queue(default_concurrency_limit=4)
    return app


def forget_copies(app: gr.Blocks, page: str) -> None:
    """Drop the outdated copies of components that gradio (6.31) keeps for a page.

    With each event gradio makes every component of the outputs anew, those that are skipped too,
    under a new id, and then files it under that id beside its own: a page left open for a night
    would take gigabytes, and those of half a minute thirty times the plots of a long run. What is
    filed under the app's own ids stays.
    """
    state = app.state_holder[page]
    kept: tuple[dict[int, Any], ...] = (state.blocks_config.blocks, state.config_values)
    for by_id in kept:
        for outdated in by_id.keys() - app.blocks.keys():
            del by_id[outdated]


def _leave_only_reading(app: gr.Blocks) -> None:
    """Grey out what wants the model or changes the run; what reads the folder stays."""
    for block in app.blocks.values():
        if isinstance(block, gr.Button) and block.elem_id not in READS:
            block.interactive = False


def contents_key(session: Session) -> str:
    """Changes whenever a frame of the run does; phases within a step leave it as it is."""
    return f"{session.reader.last_step()}/{session.reader.events()}/{session.state}"
