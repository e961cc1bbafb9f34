"""The frame of pages in a browser, and that what looks at pages sees what is wrong with one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.browser import chromium, opened

from branchgrpo.report.page import page

if TYPE_CHECKING:
    from playwright.sync_api import Browser

__all__ = ["chromium"]
pytestmark = pytest.mark.heavy

WORDS = "<p>Some words that are long enough to be broken into several lines on a phone.</p>"


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("dark", [False, True])
def test_a_sound_page_has_no_fault(
    chromium: Browser, tmp_path: Path, width: int, dark: bool
) -> None:
    place = tmp_path / "sound.html"
    table = "<div class=scroll><table><tr>" + "<td>0.123</td>" * 90 + "</tr></table></div>"
    plot = '<svg width=90 height=30><text x=5 y=20>one</text><path d="M0 15H90"/></svg>'
    body = f"<h1>Title</h1>{WORDS * 3}<button>go</button>{table}{plot}"
    place.write_text(page("sound", body), encoding="utf-8")
    with opened(chromium, place, width=width, dark=dark) as looked:
        assert looked.faults() == []
        ground = looked.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")


def test_what_is_wrong_with_a_page_is_seen(chromium: Browser, tmp_path: Path) -> None:
    place = tmp_path / "bad.html"
    body = (
        '<p style="margin-bottom:-30px">first of two texts</p><p>second of two texts</p>'
        '<div style="width:900px">wide</div><img src="http://127.0.0.1:9/x.png" alt="">'
        "<svg><text x=5 y=20>one</text><text x=8 y=22>two</text></svg>"
    )
    place.write_text(page("bad", body, script="missing();"), encoding="utf-8")
    with opened(chromium, place, width=390) as looked:
        told = "\n".join(looked.faults())
        picture = looked.screenshot(tmp_path / "bad.png")
    assert "missing is not defined" in told
    assert "request: http://127.0.0.1:9/x.png" in told
    assert "beyond the width: div “wide”" in told
    assert "overlap: p “first of two texts” and p “second of two texts”" in told
    assert "overlap: text “one” and text “two”" in told
    assert picture.read_bytes().startswith(b"\x89PNG")
