"""The frame of pages that stand alone: one file, no request leaves it, light and dark, from a phone
to a wide screen."""

from __future__ import annotations

import base64
import html
import io
import json
from typing import Any

from branchgrpo.types import U8

STYLE = """
:root { color-scheme: light dark;
  --ground: #ffffff; --panel: #f4f5f7; --line: #c9ced6; --text: #16191f; --quiet: #5a6270;
  --accent: #1f5fbf; --good: #1a7f4b; --bad: #c2372e; --none: #9aa1ac; }
@media (prefers-color-scheme: dark) { :root {
  --ground: #14171c; --panel: #1e232b; --line: #3b424e; --text: #e8ebf0; --quiet: #a3abb8;
  --accent: #7fb0ff; --good: #4cc38a; --bad: #ff7b72; --none: #6c7480; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1400px; padding: 16px; background: var(--ground);
  color: var(--text); font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; margin: 0 0 4px; } h2 { font-size: 1.15rem; margin: 28px 0 8px; }
a { color: var(--accent); } .quiet { color: var(--quiet); } .good { color: var(--good); }
.bad { color: var(--bad); } img { max-width: 100%; height: auto; }
table { border-collapse: collapse; } th, td { padding: 3px 12px 3px 0; text-align: left;
  vertical-align: top; border-bottom: 1px solid var(--line); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; } .pixels { image-rendering: pixelated; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
button, select, input { font: inherit; color: inherit; background: var(--panel);
  border: 1px solid var(--line); border-radius: 6px; padding: 4px 10px; }
"""
"""Colours are named by what they say, so that a page's own style needs no second set."""


def page(title: str, body: str, *, style: str = "", script: str = "", refresh: int = 0) -> str:
    """A whole HTML document.

    body: HTML, whose texts went through `text`. style, script: the page's own, after the frame's.
    refresh: seconds after which it loads itself anew; 0 = never.
    """
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    run = f"<script>{script}</script>" if script else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # an empty icon: a browser would ask the server for one
        f'<link rel="icon" href="data:,">{again}<title>{text(title)}</title>'
        f"<style>{STYLE}{style}</style></head><body>{body}{run}</body></html>\n"
    )


def text(value: Any) -> str:
    """What stands in HTML, or between quotes of an attribute, as it is."""
    return html.escape(str(value))


def data(value: Any) -> str:
    """JSON that may stand within a script element."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def picture(pixels: U8, most: int = 256, quality: int = 85) -> str:
    """A picture [H, W, 3] as a data: address, WebP; reduced to `most` pixels at its longer side.
    One that is small stays what it is, without loss: let the page enlarge it, see `.pixels`."""
    from PIL import Image

    drawn = Image.fromarray(pixels)
    small = max(drawn.size) <= 64
    if max(drawn.size) > most:
        drawn.thumbnail((most, most), Image.Resampling.LANCZOS)
    kept = io.BytesIO()
    drawn.save(kept, "WEBP", lossless=small, quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(kept.getvalue()).decode("ascii")
