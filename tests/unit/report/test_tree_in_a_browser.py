"""A page of trees, as people open it."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import pytest
from support.browser import chromium, opened
from support.grown_trees import grown
from support.small_trees import paper_plan

from branchgrpo.report.tree.html import Shown, tree_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser

__all__ = ["chromium"]
pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("tree") / "tree.html"
    shown = [Shown(f"iteration {number}", grown(paper_plan())) for number in (0, 120)]
    found.write_text(tree_page("a run", shown), encoding="utf-8")
    return found


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1440, True)])
def test_nothing_is_wrong_and_every_node_tells_of_itself(
    chromium: Browser, path: Path, width: int, dark: bool
) -> None:
    with opened(chromium, path, width=width, dark=dark) as looked:
        page = looked.page
        assert looked.faults() == []
        told = page.locator("#figures")
        nodes = grown(paper_plan())[0].topology.nodes
        assert page.locator(".node").count() == 2 * nodes
        for node in (0, 17, nodes - 1):
            spot = page.locator(f"#n1-0-{node}")
            spot.tap() if width == 390 else spot.hover()
            assert f"node{node}" in told.inner_text().replace("\n", "")
        assert page.locator("#large").is_visible()
        assert looked.faults() == []


def test_arrow_keys_reach_every_node(chromium: Browser, path: Path) -> None:
    with opened(chromium, path) as looked:
        page = looked.page
        page.keyboard.press("Tab")
        reached = set[str]()

        def here() -> str:
            found: str = page.evaluate("document.activeElement.id")
            reached.add(found)
            return found

        def along(key: str) -> None:
            last = ""
            while (now := here()) != last:
                last = now
                page.keyboard.press(key)

        topo = grown(paper_plan())[0].topology
        page.locator("#n0-0-0").focus()
        for level in range(len(topo.offset) - 1):
            page.locator(f"#n0-0-{topo.offset[level]}").focus()
            for _ in range(int(topo.offset[level + 1] - topo.offset[level])):
                here()
                page.keyboard.press("ArrowDown")
        assert {f"n0-0-{node}" for node in range(topo.nodes)} <= reached
        page.locator(f"#n0-0-{topo.nodes - 1}").focus()
        along("ArrowLeft")
        assert here() == "n0-0-0"
        along("ArrowRight")
        assert here() == f"n0-0-{topo.offset[-2]}"


def test_many_leaves_open_at_once(chromium: Browser, path: Path) -> None:
    many = path.with_name("many.html")
    trees = grown(paper_plan(), trees=8, side=512)
    many.write_text(tree_page("a run", [Shown("iteration 0", trees)]), encoding="utf-8")
    begun = perf_counter()
    with opened(chromium, many) as looked:
        assert looked.page.locator(".node").count() == 8 * trees[0].topology.nodes
        assert looked.faults() == []
    print(f"opened in {perf_counter() - begun:.2f} s")
