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
).set(
    body_text_color_subdued="*neutral_600",  # the default is too pale to read
    body_text_color_subdued_dark="*neutral_400",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_400",
)

CSS = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
