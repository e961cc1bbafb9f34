"""Documents agree with what is there: links, names of files, words, the version."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import branchgrpo

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FOLDERS = ("actors", "branchgrpo", "cluster", "configs", "examples", "tests", "tools")
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
PYTHON_FILE = re.compile(r"`((?:\w+/)*\w+\.py)`")
GONE = re.compile(
    r"\b(crew|gang|harvest|heed|patience|spine|(?<!black-)forest|trainer\.py|experiment\.py)\b"
)


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", CODE.sub("", page.read_text(encoding="utf-8")), re.M)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return set(plain)


def test_there_are_pages() -> None:
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    page, broken = ROOT / name, []
    for link in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("name", NAMES)
def test_python_files_that_are_named_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    named = set(PYTHON_FILE.findall(text))
    there = ["run.py", *(file.relative_to(ROOT).as_posix() for file in _sources())]
    assert not [one for one in named if not any(f"/{file}".endswith(f"/{one}") for file in there)]


def _sources() -> list[Path]:
    return [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "CHANGELOG.md"])
def test_no_word_or_module_of_the_past(name: str) -> None:
    assert not GONE.findall((ROOT / name).read_text(encoding="utf-8"))


def test_diagrams_are_of_known_kinds() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    diagrams = re.findall(r"^```mermaid\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    known = {"flowchart", "sequenceDiagram", "stateDiagram-v2"}
    assert known == {diagram.split()[0] for diagram in diagrams}
    # a semicolon ends a statement, also within a message
    assert not any(";" in diagram for diagram in diagrams)


def test_the_citation_is_of_this_version_and_names_the_paper() -> None:
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= found.keys()
    assert found["version"] == branchgrpo.__version__
    (paper,) = found["references"]
    assert paper["url"].endswith("2509.06040") and len(paper["authors"]) == 7
