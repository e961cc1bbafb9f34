"""The site of docs/: the page of all keys is fresh, links lead to pages of the site, and lists are
indented as Python-Markdown wants them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, Field

from tools.site import configuration, diagrams, hooks

ROOT = Path(__file__).resolve().parents[3]


def test_the_page_of_all_keys_is_fresh() -> None:
    assert configuration.PAGE.read_text(encoding="utf-8") == configuration.page(), (
        "run: python -m tools.site.configuration"
    )


class Inner(BaseModel):
    size: int = Field(3, ge=1, description="how many")


class Outer(BaseModel):
    rate: float | None = Field(None, gt=0, description="a | b, see docs/gpus.md")
    kinds: tuple[Literal["x", "y"], ...] = Field(("x",), description="which")
    count: Literal["auto"] | Annotated[int, Field(ge=0)] = Field("auto", description="or a number")
    path: str = Field(description="where")
    inner: Inner = Field(Inner(size=5), description="more")


def test_a_key_says_type_default_and_meaning() -> None:
    rows = {key: configuration.cells(field) for key, field in configuration.rows(Outer)}
    assert rows == {
        "rate": ("number > 0 or null", "null", "a \\| b, see [gpus.md](gpus.md)"),
        "kinds": ("list of `x`, `y`", "`[x]`", "which"),
        "count": ("`auto` or whole number ≥ 0", "`auto`", "or a number"),
        "path": ("text", "–", "where"),
        "inner.size": ("whole number ≥ 1", "`5`", "how many"),
    }


def test_keys_of_all_components_stand_together_with_each_default() -> None:
    one = {"a": ("text", "`1`", "same"), "b": ("text", "`1`", "one"), "c": ("text", "–", "own")}
    two = {"a": ("text", "`2`", "same"), "b": ("text", "`1`", "two")}
    three = {"a": ("text", "`1`", "same"), "b": ("text", "`1`", "two")}
    found = configuration.shared({"one": one, "two": two, "three": three})
    assert found == {"a": ("text", "`1`; `2` (two)", "same")}


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("docs/method.md", "methods.md#kernels", "methods.md#kernels"),
        ("docs/method.md", "../run.py", "source/run.py.md"),
        ("docs/method.md", "../CONTRIBUTING.md#style", "contributing.md#style"),
        ("docs/benchmarks/README.md", "../gpus.md", "../gpus.md"),
        ("docs/benchmarks/README.md", "../../run.py", "../source/run.py.md"),
        ("CONTRIBUTING.md", "docs/plugins.md", "plugins.md"),
        ("CONTRIBUTING.md", "CHANGELOG.md", "changelog.md"),
        ("docs/method.md", "https://ray.io", "https://ray.io"),
        ("docs/method.md", "#plan", "#plan"),
        ("docs/method.md", "nothing.md", "nothing.md"),
    ],
)
def test_links_lead_to_pages_of_the_site(page: str, link: str, expected: str) -> None:
    assert hooks.relinked(f"see [it]({link}).\n", page) == f"see [it]({expected}).\n"


def test_code_keeps_its_links() -> None:
    text = "```\n[it](../run.py)\n```\n"
    assert hooks.relinked(text, "docs/method.md") == text


def test_what_pages_outside_the_folder_lead_to_is_of_the_site_too() -> None:
    found = hooks.linked(["docs/method.md"])
    assert {"CONTRIBUTING.md", "CHANGELOG.md", "examples/branchgrpo_in_200_lines.py"} <= set(found)
    assert hooks.content(ROOT / "run.py").startswith("# run.py\n\n```python\n")


def test_lists_are_indented_by_four() -> None:
    text = "Text\n- a\n  b\n\n  | c |\n  - d\n\n1. e\n   f\n\nEnd\n  g\n"
    expected = "Text\n\n- a\n    b\n\n    | c |\n    - d\n\n1. e\n    f\n\nEnd\n  g\n"
    assert hooks.indented(text) == expected


def test_code_in_a_list_keeps_its_shape() -> None:
    text = "- a\n\n  ```\n  if x:\n      y\n  ```\n\n```\n  z\n```\n"
    expected = "- a\n\n    ```\n    if x:\n        y\n    ```\n\n```\n  z\n```\n"
    assert hooks.indented(text) == expected


def test_a_notebook_is_a_page() -> None:
    code = {
        "cell_type": "code",
        "source": ["1 + 1"],
        "outputs": [{"data": {"text/plain": ["2"]}}, {"data": {"image/png": "aGk=\n"}}],
    }
    cells = [{"cell_type": "markdown", "source": ["# A\n", "[b](../run.py)"]}, code]
    assert list(hooks.notebook({"cells": cells})) == [
        "# A\n[b](../run.py.md)",
        "```python\n1 + 1\n```",
        "```text\n2\n```",
        "![what the cell shows](data:image/png;base64,aGk=)",
    ]


def test_diagrams_are_pictures_of_today() -> None:
    there = {path.name for path in hooks.PICTURES.glob("*.svg")}
    assert there == {hooks.picture_of(text) for text in diagrams.texts()}, (
        "run: python -m tools.site.diagrams, see there"
    )


def test_a_diagram_is_its_picture() -> None:
    page, text = "# A\n\n```mermaid\nflowchart LR\n```\n", "flowchart LR\n"
    name = hooks.picture_of(text)
    assert hooks.drawn(page, "a.md") == f"# A\n\n![diagram](images/diagrams/{name}){{ .diagram }}\n"
    assert f"(../images/diagrams/{name})" in hooks.drawn(page, "benchmarks/README.md")


def test_every_page_is_in_the_contents() -> None:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *parts: None)
    site = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
    named = set(leaves(site["nav"]))
    docs = ROOT / "docs"
    pages = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    assert pages == {one for one in named if (docs / one).exists()}


def leaves(entries: Any) -> Iterator[str]:
    """Pages in the contents, however deep."""
    if isinstance(entries, str):
        yield entries
        return
    for entry in entries.values() if isinstance(entries, dict) else entries:
        yield from leaves(entry)
