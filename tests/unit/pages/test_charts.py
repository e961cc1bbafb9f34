"""Charts as SVG: places by hand."""

from __future__ import annotations

import html
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from branchgrpo.pages.charts import BOTTOM, LEFT, RIGHT, TOP, Series, bars, lines, stacked, ticks

SIZE = (LEFT + RIGHT + 100, TOP + BOTTOM + 112)
"""100 units of room across; 112 down, of which 6 % above and below are for the eye."""


def series(y: list[float], **options: object) -> Series:
    values = np.array(y, np.float64)
    x = np.arange(len(y), dtype=np.float64)
    return Series(name="one", x=x, y=values, colour="red", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("low", "high", "most", "wanted"),
    [
        (0, 1, 6, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-0.03, 0.11, 5, [0, 0.05, 0.1]),
        (0, 230, 5, [0, 100, 200]),
        (1, 1, 5, [1]),
        (995, 1005, 3, [995, 1000, 1005]),
    ],
)
def test_ticks_are_round(low: float, high: float, most: int, wanted: list[float]) -> None:
    assert ticks(low, high, most) == pytest.approx(wanted)


def test_lines_are_where_their_values_are() -> None:
    drawn = lines([series([0, 1, np.nan, 2])], label="a <label>", size=SIZE)
    root = ElementTree.fromstring(drawn)
    assert root.get("aria-label") == "a <label>" and root.get("tabindex") is None
    (path,) = [one for one in root.iter("path") if one.get("class") == "line"]
    places = [tuple(map(float, place.split())) for place in path.get("d", "")[1:].split("L")]
    wanted = [(LEFT + 100 * x / 3, TOP + 106 - 50 * y) for x, y in ((0, 0), (1, 1), (3, 2))]
    assert places == [pytest.approx(place, abs=0.06) for place in wanted]
    assert lines([series([np.nan])], label="", size=SIZE) == ""
    assert "circle" in lines([series([0.5])], label="", size=SIZE)


def test_a_band_goes_there_and_back() -> None:
    low, high = np.array([0.0, 1.0]), np.array([2.0, np.nan])
    drawn = lines([series([1, 1.5], low=low, high=high)], label="", size=SIZE)
    (band,) = re.findall(r'class="band" d="([^"]*)"', drawn)
    assert band.startswith("M") and band.endswith("Z") and band.count("L") == 1
    whole = lines([series([1, 1.5], low=low, high=low + 1)], label="", size=SIZE)
    (band,) = re.findall(r'class="band" d="([^"]*)"', whole)
    assert band.count("L") == 3


def test_words_stand_at_their_places() -> None:
    told = [(0.0, 'it says "<>&'), (3.0, "end")]
    drawn = lines([series([0, 1, 1, 2])], label="", size=SIZE, words=told)
    (found,) = re.findall(r'data-words="([^"]*)"', drawn)
    known = json.loads(html.unescape(found))
    assert [words for _, words in known] == ['it says "<>&', "end"]
    assert [place for place, _ in known] == [LEFT, LEFT + 100]


def test_areas_stand_on_one_another() -> None:
    x = np.array([1.0, 2.0, 3.0])
    parts = [("a", np.array([1.0, 1.0, 1.0])), ("b", np.array([1.0, np.nan, 3.0]))]
    root = ElementTree.fromstring(stacked(x, parts, label="seconds", size=SIZE))
    filled = [one.get("d", "") for one in root.iter("path") if one.get("fill", "").startswith("v")]
    assert len(filled) == 2
    first = [place.split()[1] for place in filled[0][1:-1].split("L")]
    upper = [place.split()[1] for place in filled[1][1:-1].split("L")]
    assert first[3:] == [first[-1]] * 3  # the ground
    assert sorted(upper[3:]) == sorted(first[:3])  # stands on the first
    assert stacked(np.zeros(0), [], label="") == ""


def test_bars_are_as_high_as_their_counts() -> None:
    root = ElementTree.fromstring(bars([0, 1, 2, 3], [2, 0, 4], label="h", size=(90, 122)))
    heights = [float(one.get("height", "")) for one in root.iter("rect")]
    assert heights == [50, 100]
    titles = [one.text for one in root.iter("title")]
    assert titles == ["0 … 1: 2", "2 … 3: 4"]
