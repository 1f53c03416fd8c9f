"""The app's look: a theme without any font or script from the network, and the style sheet."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

THEME = gr.themes.Base(
    primary_hue=gr.themes.colors.sky,
    neutral_hue=gr.themes.colors.slate,
    spacing_size="sm",
    radius_size="md",
    text_size="sm",
    font=["system-ui", "Segoe UI", "Roboto", "sans-serif"],
    font_mono=["ui-monospace", "SFMono-Regular", "DejaVu Sans Mono", "Menlo", "monospace"],
)

CSS = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
