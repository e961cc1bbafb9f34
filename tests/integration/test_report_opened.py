"""The page of a real run in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.browser import chromium, opened
from support.in_process import Service
from support.quiet_display import Quiet
from support.small_loop import config

from branchgrpo.pages.written import report
from branchgrpo.training.carry_out import carry_out

if TYPE_CHECKING:
    from playwright.sync_api import Browser

__all__ = ["chromium"]
pytestmark = pytest.mark.heavy

SHOWN = "img[data-at]:not([hidden])"
SLIDER = "[data-slider=sheets] input"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run with a check after every iteration."""
    place = tmp_path_factory.mktemp("runs") / "small"
    loaded = config(**{"run.iterations": "3", "evaluation.every": "1", "evaluation.diversity": "2"})
    carry_out(
        loaded,
        service=Service(loaded),
        folder=place,
        display=Quiet(),
        interrupted=lambda: False,
    )
    return place


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("dark", [False, True])
def test_a_report_has_no_fault(chromium: Browser, folder: Path, width: int, dark: bool) -> None:
    with opened(chromium, folder / "report.html", width=width, dark=dark) as looked:
        page = looked.page
        assert looked.faults() == []
        # by keyboard through the checks: before, after iterations 1 and 2, after training
        assert page.locator(SHOWN).count() == 4
        output = page.locator("[data-slider=sheets] output")
        told = [output.inner_text()]
        page.locator(SLIDER).focus()
        for _ in range(3):
            page.keyboard.press("ArrowLeft")
            told.append(output.inner_text())
            assert page.locator(SHOWN).count() == 4
        assert told == ["after", "iteration 2", "iteration 1", "before"]
        assert looked.faults() == []


def test_charts_tell_what_is_pointed_at(chromium: Browser, folder: Path) -> None:
    with opened(chromium, folder / "report.html") as looked:
        chart = looked.page.locator("#reward .desk svg")
        told = looked.page.locator("#reward .desk .told")
        chart.focus()
        assert told.inner_text().startswith("iteration 3: ")
        looked.page.keyboard.press("Home")
        assert told.inner_text().startswith("iteration 0: held out ")
        box = chart.bounding_box()
        assert box
        looked.page.mouse.move(box["x"] + box["width"] * 0.37, box["y"] + 50)
        assert told.inner_text().startswith("iteration 1: ")


def test_a_chosen_check_stays_when_the_page_comes_anew(chromium: Browser, folder: Path) -> None:
    with opened(chromium, folder / "report.html") as looked:
        looked.page.locator(SLIDER).focus()
        looked.page.keyboard.press("ArrowLeft")
        looked.page.reload()
        assert looked.page.locator("[data-slider=sheets] output").inner_text() == "iteration 2"
        assert looked.faults() == []


def test_a_comparison_has_no_fault(chromium: Browser, folder: Path) -> None:
    path = report([folder, folder])
    for width in (390, 1440):
        with opened(chromium, path, width=width) as looked:
            assert looked.faults() == []
