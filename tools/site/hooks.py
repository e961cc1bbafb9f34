"""What makes a site of pages that are also read on a code host: links out of docs/ lead to pages
of their own, and lists are indented as Python-Markdown wants them.

MkDocs calls `on_files` and `on_page_markdown`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DOCS = "docs/"
ALWAYS = ("CONTRIBUTING.md", "CHANGELOG.md", "examples/notebook.ipynb")
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".json": "json"}
PICTURES = ROOT / "docs" / "images" / "diagrams"
DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^ *```")
ENTRY = re.compile(r"^ *(?:[-*]|\d+\.) ")


def on_files(files: Any, config: Any) -> Any:
    """Add a page for each file outside docs/ that a page links to, and so on."""
    from mkdocs.structure.files import File, InclusionLevel

    pages = [DOCS + file.src_uri for file in files.documentation_pages()]
    for path in linked(pages):
        page = File.generated(config, place(path), content=content(ROOT / path))
        page.inclusion = InclusionLevel.NOT_IN_NAV  # it may be in it
        files.append(page)
    return files


def linked(pages: list[str]) -> list[str]:
    """Files outside docs/ that are of the site: those that its pages lead to, from one to the
    next."""
    found = dict.fromkeys(ALWAYS)
    waiting = [*pages, *found]
    while waiting:
        for path in outside(waiting.pop()):
            if path not in found:
                found[path] = None
                waiting.append(path)
    return list(found)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """The text of a page for the site."""
    if page.file.abs_src_path is not None:  # else made by on_files
        markdown = relinked(drawn(markdown, page.file.src_uri), DOCS + page.file.src_uri)
    return indented(markdown)


def drawn(markdown: str, src_uri: str) -> str:
    """A page with its Mermaid diagrams as the pictures that tools/site/diagrams.py drew: a link
    that leads nowhere, and so a warning, where one is missing."""
    folder = posixpath.relpath("images/diagrams", posixpath.dirname(src_uri) or ".")
    return DIAGRAM.sub(
        lambda match: f"![diagram]({folder}/{picture_of(match[1])}){{ .diagram }}", markdown
    )


def picture_of(text: str) -> str:
    """The name of a diagram's picture."""
    return hashlib.sha256(text.encode()).hexdigest()[:12] + ".svg"


def place(path: str) -> str:
    """Where a file of the repository is on the site."""
    if path.startswith(DOCS):
        return path.removeprefix(DOCS)
    return path.lower() if path.endswith(".md") else f"source/{path}.md"


def outside(path: str) -> list[str]:
    """Files outside docs/ that a page of the repository links to."""
    if not path.endswith(".md"):
        return []
    text = "".join(prose((ROOT / path).read_text(encoding="utf-8")))
    found = [target(path, link) for link, _ in LINK.findall(text) if "://" not in link]
    return [one for one in found if not one.startswith(DOCS) and (ROOT / one).is_file()]


def target(path: str, link: str) -> str:
    """The file of the repository that a page's link leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def prose(text: str) -> Iterator[str]:
    """Lines of a page, blocks of code empty."""
    for line, code in lines(text):
        yield "\n" if code else line


def lines(text: str) -> Iterator[tuple[str, bool]]:
    """Lines of a page with their ends, and whether each is in a block of code."""
    code = False
    for line in text.splitlines(keepends=True):
        fence = bool(FENCE.match(line))
        yield line, code or fence
        code ^= fence


def relinked(text: str, path: str) -> str:
    """A page with the links of the repository turned into those of the site."""
    here = posixpath.dirname(place(path))

    def moved(match: re.Match[str]) -> str:
        link, anchor = match[1], match[2] or ""
        if "://" in link or not (ROOT / target(path, link)).is_file():
            return match[0]
        return posixpath.relpath(place(target(path, link)), here or ".") + anchor

    return "".join(line if code else LINK.sub(moved, line) for line, code in lines(text))


def content(file: Path) -> str:
    """The page of a file outside docs/: Markdown as it is, a notebook's cells, else its text."""
    path = file.relative_to(ROOT).as_posix()
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        return relinked(text, path)
    if file.suffix == ".ipynb":
        return "\n\n".join(cell for cell in notebook(json.loads(text)))
    return f"# {path}\n\n```{LANGUAGES.get(file.suffix, '')}\n{text.rstrip()}\n```\n"


def notebook(found: dict[str, Any]) -> Iterator[str]:
    """Cells of a notebook as Markdown: texts, code, and of its outputs text and pictures."""
    for cell in found["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            yield relinked(source, "examples/notebook.ipynb")
            continue
        yield f"```python\n{source}\n```"
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                picture = "".join(data["image/png"]).replace("\n", "")
                base64.b64decode(picture, validate=True)
                yield f"![what the cell shows](data:image/png;base64,{picture})"
            elif shown := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
                yield f"```text\n{shown}\n```"


def indented(text: str) -> str:
    """What belongs to an entry of a list four columns in, and a list apart from the text above
    it."""
    found: list[str] = []
    in_list, shift = False, 0
    for line, code in lines(text):
        column = len(line) - len(line.lstrip(" "))
        entry = not code and bool(ENTRY.match(line))
        if entry and not in_list and found and found[-1].strip():
            found.append("\n")
        if line.strip() and not code:
            in_list = entry or (in_list and column > 1)
        if not code or FENCE.match(line):
            shift = 4 * -(-column // 3) - column if in_list and column > 1 else 0
        found.append(" " * shift + line if line.strip() else line)
    return "".join(found)
