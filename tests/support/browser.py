"""Pages in a browser: Debian's Chromium, driven by Playwright. Tests that take `chromium` are
skipped where one of both is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PROGRAM = shutil.which("chromium")
ARGUMENTS = (
    "--no-sandbox",  # of root, as in containers
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
OVERLAPS = """() => {
  const slack = 1.5, found = [], name = one => {
    const words = (one.textContent || "").trim().slice(0, 30);
    return one.tagName.toLowerCase() + (one.id ? "#" + one.id : "")
      + (one.classList.length ? "." + [...one.classList].join(".") : "") + ` “${words}”`;
  };
  // what is cut off by a box that scrolls is reached by scrolling
  const scrolls = one => {
    for (let up = one.parentElement; up; up = up.parentElement)
      if (["auto", "scroll", "hidden"].includes(getComputedStyle(up).overflowX)
          && up !== document.body && up !== document.documentElement) return true;
    return false;
  };
  // what stands still lies above what scrolls below it
  const above = one => {
    for (let up = one; up; up = up.parentElement)
      if (["fixed", "sticky"].includes(getComputedStyle(up).position)) return up;
    return null;
  };
  const boxes = [];
  const ends = "img, svg, button, input, select, summary, canvas, video, svg text";
  for (const one of document.querySelectorAll("body *")) {
    if (["SCRIPT", "STYLE", "NOSCRIPT", "OPTION"].includes(one.tagName)) continue;
    if (!one.checkVisibility({visibilityProperty: true, opacityProperty: true})) continue;
    const box = one.getBoundingClientRect();
    if (box.width < 1 || box.height < 1) continue;
    if (!scrolls(one) && (box.right > innerWidth + slack || box.left < -slack))
      found.push(`beyond the width: ${name(one)}`);
    const own = [...one.childNodes].some(x => x.nodeType === 3 && x.textContent.trim());
    if (one.matches(ends)) boxes.push([one, box]);
    else if (own && !one.closest("svg")) {
      for (const node of one.childNodes) if (node.nodeType === 3 && node.textContent.trim()) {
        const range = document.createRange();
        range.selectNodeContents(node);
        for (const line of range.getClientRects()) boxes.push([one, line]);
      }
    }
  }
  for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
    const [a, p] = boxes[i], [b, q] = boxes[j];
    if (a === b || a.contains(b) || b.contains(a) || above(a) !== above(b)) continue;
    const inside = a.closest("svg") && a.closest("svg") === b.closest("svg");
    if (inside && !(a.matches("text") && b.matches("text"))) continue;
    const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
    const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
    // lines of text share some pixels of their line boxes
    const lines = Math.min(p.height, q.height) / 3;
    if (wide > slack && high > Math.max(slack, Math.min(lines, 6)))
      found.push(`overlap: ${name(a)} and ${name(b)}`);
  }
  return [...new Set(found)];
}"""
"""What reaches beyond the viewport's width, and which texts, pictures and controls lie on one
another: a line each."""


@dataclass(kw_only=True)
class Looked:
    """A page that is open, and what was wrong with it so far."""

    page: Page  # of Playwright: for hover and keyboard
    errors: list[str] = field(default_factory=list)  # of the console, and exceptions
    left: list[str] = field(default_factory=list)  # addresses asked for, but the page's own

    def overlaps(self) -> list[str]:
        """Lines, see OVERLAPS; of what is shown now."""
        found: list[str] = self.page.evaluate(OVERLAPS)
        return found

    def screenshot(self, path: Path) -> Path:
        """A PNG of the whole page."""
        self.page.screenshot(path=path, full_page=True)
        return path

    def faults(self) -> list[str]:
        """All that may not be, as lines."""
        left = [f"request: {address}" for address in self.left]
        return [*(f"console: {text}" for text in self.errors), *left, *self.overlaps()]


@contextmanager
def opened(
    browser: Browser, path: Path, *, width: int = 1440, dark: bool = False, height: int = 900
) -> Iterator[Looked]:
    """The page in a viewport of so many CSS pixels; of at most 600, on a phone that is touched. No
    request goes anywhere but to files."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        has_touch=width <= 600,
        offline=True,
    )
    try:
        page = context.new_page()
        looked = Looked(page=page)
        own = path.resolve().as_uri()
        page.on("pageerror", lambda error: looked.errors.append(str(error)))
        page.on(
            "console",
            lambda told: (
                looked.errors.append(told.text) if told.type in ("error", "warning") else None
            ),
        )
        page.on(
            "request",
            lambda asked: (
                None
                if asked.url.partition("#")[0] == own
                or asked.url.startswith(("data:", "blob:", "about:"))
                else looked.left.append(asked.url)
            ),
        )
        page.goto(own, wait_until="load")
        yield looked
    finally:
        context.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, for the tests of a file. Nothing is downloaded for it."""
    if not PROGRAM:
        pytest.skip("Debian's chromium is not installed")
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=PROGRAM, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()
