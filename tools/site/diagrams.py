"""Draw the Mermaid diagrams of docs/ for the site, which runs no program to draw them: a picture
each in docs/images/diagrams, named by its text.

npm pack mermaid@11 && tar xzf mermaid-11.*.tgz package/dist/mermaid.min.js
python -m tools.site.diagrams package/dist/mermaid.min.js

Needs Playwright and Debian's Chromium. Pictures of texts that are gone are removed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tools.site.hooks import DIAGRAM, PICTURES, ROOT, picture_of

SETTINGS = {
    "startOnLoad": False,
    "theme": "neutral",
    "htmlLabels": False,
    "fontFamily": "sans-serif",
    "flowchart": {"htmlLabels": False},
}


def texts() -> list[str]:
    """All diagrams of docs/."""
    pages = sorted((ROOT / "docs").rglob("*.md"))
    return [text for page in pages for text in DIAGRAM.findall(page.read_text(encoding="utf-8"))]


def draw(program: Path) -> None:
    """Write what is missing, with Mermaid's mermaid.min.js, and remove what is of no page."""
    from playwright.sync_api import sync_playwright

    wanted = {picture_of(text): text for text in texts()}
    PICTURES.mkdir(exist_ok=True)
    for file in PICTURES.glob("*.svg"):
        if file.name not in wanted:
            file.unlink()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_context(offline=True).new_page()
        page.add_script_tag(path=program)
        page.evaluate(f"mermaid.initialize({json.dumps(SETTINGS)})")
        for name, text in wanted.items():
            drawn = page.evaluate(
                "text => mermaid.render('diagram', text).then(found => found.svg)", text
            )
            (PICTURES / name).write_text(drawn + "\n", encoding="utf-8")
        browser.close()


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
