"""Pieces the tabs are made of: live plots, live tables, text cards, and errors told in one line.

gr.HTML keeps `value` as data and runs a script in the page; the two beside this file draw it.
They are made by functions, not subclasses: Gradio writes a stub file beside each subclass it meets.
"""

from __future__ import annotations

import functools
import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
import plotly
import plotly.graph_objects as go

from workbench import plots
from workbench.config import ConfigError
from workbench.store import RunFolderError
from workbench.worker import SessionError

Values = Mapping[Any, Any]
"""What a browser has in its components, by component."""
Updates = dict[Any, Any]
"""New values, by component; a component that is not named stays as it is."""

_HERE = Path(__file__).parent
_PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"


@dataclass(frozen=True)
class View:
    """A tab as the app sees it."""

    inputs: set[Any]
    """Components whose values `draw` wants."""
    outputs: set[Any]
    """Components `draw` may update."""
    draw: Callable[[Values], Updates]
    """The tab's contents for what the run holds now."""


def live_plot(height: int, name: str, hint: str = "", waiting: str = "") -> Any:
    """A figure that keeps its zoom through updates; give it `figure_json`.

    `hint`: how to read it, behind the "?" in its corner. `waiting`: shown until it is first drawn.
    Its event `pick` carries a clicked point's data and x. Plotly comes from the installed package,
    never from the network.
    """
    gr.set_static_paths([_PLOTLY])
    told_how = html.escape(hint)
    mark = f'<span class="wb-hint" tabindex="0" data-hint="{told_how}">?</span>' if hint else ""
    box = f'<div class="wb-plot" style="height:{height}px">{quiet(waiting)}</div>'
    return gr.HTML(
        "",
        html_template=box + mark,
        js_on_load=(_HERE / "live_plot.js").read_text(encoding="utf-8"),
        head=f'<script src="gradio_api/file={_PLOTLY.as_posix()}"></script>',
        elem_id=name,
        elem_classes="plot-card",
        apply_default_css=False,
    )


def figure_json(figure: go.Figure, because: str = "") -> str:
    """A figure as a live plot takes it. `because`: why it is empty for good, if it is empty."""
    if because and not figure.data:
        figure = plots.empty(figure.layout.title.text, because)
    return str(figure.to_json())


def live_table(height: int, name: str, waiting: str = "") -> Any:
    """A sortable table; give it `table_json`. `pick`: the id of the row clicked.

    `waiting`: shown until it is first filled.
    """
    return gr.HTML(
        table_json([], [], [], waiting),
        html_template=f'<div class="wb-table" style="max-height:{height}px"></div>',
        js_on_load=(_HERE / "live_table.js").read_text(encoding="utf-8"),
        elem_id=name,
        elem_classes="bare",
        apply_default_css=False,
    )


@dataclass(frozen=True)
class Column:
    """A column of a live table: text, or a number with so many digits."""

    label: str
    digits: int | None = None
    help: str = ""
    wrap: bool = False
    """Long texts are broken into lines, not cut."""


def table_json(
    columns: Sequence[Column],
    rows: Sequence[Sequence[object]],
    ids: Sequence[str],
    empty: str,
    selected: str | None = None,
) -> str:
    """Rows as a live table takes them: one id a row; NaN is shown as missing.

    `empty` is shown where there are no rows. `selected` marks a row; None leaves the mark alone.
    """
    described = [
        {"label": c.label, "help": c.help, "wrap": c.wrap}
        | ({} if c.digits is None else {"digits": c.digits})
        for c in columns
    ]
    table: dict[str, object] = {
        "columns": described,
        "rows": [[_cell(value) for value in row] for row in rows],
        "ids": list(ids),
        "empty": empty,
    }
    if selected is not None:
        table["selected"] = selected
    return json.dumps(table, ensure_ascii=False)


def _cell(value: object) -> object:
    if isinstance(value, str):
        return value.replace("\n", "↵")
    number = float(value)  # type: ignore[arg-type]
    return None if math.isnan(number) else number


def help_text(text: str) -> Any:
    """How to read a tab, in our own words: `text` may hold markup."""
    return page(f'<p class="wb-help">{text}</p>')


def page(value: str = "", name: str | None = None) -> Any:
    """A place for HTML, in the house's style. `value` is markup."""
    return gr.HTML(value, elem_id=name, elem_classes="bare", apply_default_css=False)


def quiet(text: str) -> str:
    """A hint where there is nothing to show yet."""
    return f'<p class="wb-quiet">{html.escape(text)}</p>'


def lacking(why: str) -> None:
    """A line at the top of a tab whose numbers a run does not have; nothing where it has them."""
    if why:
        page(f'<p class="wb-lacking">{html.escape(why)}</p>')


def thinned_note(overview: pd.DataFrame) -> str:
    """Says so where an overview lacks rows of older steps, as HTML; else nothing."""
    whole_from = overview.attrs["whole_from"]
    if not whole_from:
        return ""
    return quiet(
        f"Of the steps before {whole_from} the figures show those at which a curve is highest or "
        "lowest in its stretch. In a notebook Session.frame has them all."
    )


def first_metric(names: Sequence[str], wanted: str = "") -> str:
    """The metric to show: the one wanted where there is such, else the most telling one."""
    telling = ("reward", "eval/accuracy", "loss/sft", *names)
    return next((name for name in (wanted, *telling) if name in names), "reward")


def reward_chip(reward: float) -> str:
    """A reward as a small coloured label."""
    if math.isnan(reward):
        return '<span class="wb-reward">no answer to check</span>'
    look = "good" if reward > 0.5 else "bad"
    return f'<span class="wb-reward {look}">reward {reward:g}</span>'


def prompt_block(prompt: str) -> str:
    """A prompt as text."""
    return f'<div class="wb-prompt">{html.escape(prompt)}</div>'


def card(title: str, note: str, reward: float | None, body: str) -> str:
    """A text with its reward, if any. `title` and `note` are escaped; `body` is markup already."""
    chip = "" if reward is None else reward_chip(reward)
    return (
        f'<div class="wb-card"><h4>{html.escape(title)} {chip}'
        f"<span>{html.escape(note)}</span></h4>{body}</div>"
    )


def pair(cards: Sequence[str]) -> str:
    """Cards side by side, where there is room."""
    return f'<div class="wb-pair">{"".join(cards)}</div>'


def whole(value: float | None, field: str) -> int:
    """A number field as a whole number. Raises ConfigError, naming the field, where it is empty."""
    if value is None:
        raise ConfigError(f"{field}: enter a whole number")
    return int(value)


def told(action: Callable[..., Any]) -> Callable[..., Any]:
    """What a component's event calls: what a person did wrong is one line in the page.

    No updates are none: gradio takes an empty dict for a value.
    """

    @functools.wraps(action)
    def guarded(*args: Any) -> Any:
        try:
            updates = action(*args)
            return gr.skip() if updates == {} else updates
        except (SessionError, ConfigError, RunFolderError, ValueError) as error:
            gr.Warning(html.escape(str(error)))
            return gr.skip()

    return guarded
