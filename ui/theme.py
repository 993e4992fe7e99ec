"""How the pages look: Gradio's theme, the stylesheet and the script of the desk.

In Gradio 6 these belong to `mount_gradio_app`, not to `Blocks`.
"""

import hashlib
from pathlib import Path

import gradio as gr

STATIC = Path(__file__).parent / "static"
"""Served under `/static`. Nothing in it is secret."""

_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
_ACCENT = gr.themes.Color(
    name="desk",
    c50="#eff6f9",
    c100="#e3f0f5",
    c200="#c3dfea",
    c300="#9fcde0",
    c400="#7cc4e0",
    c500="#2f86a8",
    c600="#17688a",
    c700="#12546f",
    c800="#104459",
    c900="#1d343e",
    c950="#14242b",
)


def stamp() -> str:
    """Return a short digest of all static files: it changes when one of them does."""
    digest = hashlib.sha256()
    for path in sorted(STATIC.iterdir()):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def theme() -> gr.themes.Base:
    """Return the theme: system font, one accent, no shadows."""
    font = [gr.themes.Font(name) for name in _FONT]
    return gr.themes.Base(
        primary_hue=_ACCENT,
        secondary_hue=_ACCENT,
        neutral_hue="stone",
        font=font,
        font_mono=["ui-monospace", "monospace"],
    ).set(
        body_background_fill="#fafaf8",
        body_background_fill_dark="#17181a",
        block_shadow="none",
        block_border_width="0px",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        button_primary_shadow="none",
    )


def head() -> str:
    """Return what belongs into the page's head: the stylesheet and the desk's module, by content stamp."""
    version = stamp()
    return (
        '<meta name="viewport" content="width=device-width, initial-scale=1, viewport-fit=cover">\n'
        f'<link rel="stylesheet" href="/static/desk.css?v={version}">\n'
        f'<script type="module" src="/static/desk.js?v={version}"></script>'
    )


HEAD = head()
CSS = ""
"""Gradio's `css` parameter stays empty: `static/desk.css` is a plain file that the browser caches."""
