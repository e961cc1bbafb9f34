"""The frame of pages that stand alone."""

from __future__ import annotations

import base64
import io
import json
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from branchgrpo.report.page import data, page, picture, text


class Addresses(HTMLParser):
    """Every address that a page names."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]


def opened(address: str) -> Image.Image:
    kind, _, encoded = address.partition(",")
    assert kind == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")


def test_a_page_asks_for_nothing_and_says_what_it_was_given() -> None:
    hostile = '</script><img src="http://elsewhere/x.png">'
    document = page(hostile, f"<p>{text(hostile)}</p>", script=f"const all = {data([hostile])};")
    found = Addresses()
    found.feed(document)
    assert found.found == ["data:,"]
    assert "</script><img" not in document
    assert json.loads(data([hostile, 1.5, None])) == [hostile, 1.5, None]
    assert "http-equiv" not in document
    assert 'content="30"' in page("t", "", refresh=30)


def test_small_pictures_lose_nothing_and_large_ones_are_reduced() -> None:
    small = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    assert np.array_equal(np.asarray(opened(picture(small))), small)
    large = np.zeros((300, 600, 3), np.uint8)
    large[:, 300:] = 200
    drawn = np.asarray(opened(picture(large, most=128)))
    assert drawn.shape == (64, 128, 3)
    assert abs(drawn[:, :60].astype(int)).max() <= 4
    assert abs(drawn[:, 70:].astype(int) - 200).max() <= 4
