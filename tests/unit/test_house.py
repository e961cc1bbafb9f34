"""Rules that ruff can't check: lengths, arguments by keyword, words, where tests lie."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("branchgrpo", "actors", "cluster")
FOLDERS = (*PRODUCT, "configs", "docs", "examples", "tests", "tools", ".ci")

LONG_FILES: dict[str, int] = {}
"""Product files above 300 lines, each with what it may not exceed. None may be added."""
FOREIGN = {
    "permute": "a tensor's axes",
    "Progress": "columns of a bar",
}
"""Calls of others that take any number of positional arguments."""

GONE = re.compile(
    r"\b(crews?|gangs?|meter|patience|harvest(s|ed)?|heed(s|ed)?|greetings?|leavers?|forgiven|"
    r"stand_?back|spines?)\b",
    re.IGNORECASE,
)
"""Words of a private language; see the glossary in docs/architecture.md."""
PARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|_")
"""Where the words of a name meet: DriverByteCounter, sync_calls."""


def sources(*folders: str) -> Iterator[Path]:
    """Python files, run.py among those of the product."""
    if set(PRODUCT) <= set(folders):
        yield ROOT / "run.py"
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """(file:function, lines) of each, docstring included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno
            yield f"{name_of(path)}:{node.name}", node.end_lineno - node.lineno + 1


def test_no_line_has_more_than_100_columns() -> None:
    long = [
        f"{name_of(path)}:{number}"
        for path in (*sources(*FOLDERS), ROOT / "run.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 100
    ]
    assert not long


def test_files_of_the_product_have_at_most_300_lines() -> None:
    lines = {
        name_of(path): len(path.read_text(encoding="utf-8").splitlines())
        for path in sources(*PRODUCT)
    }
    assert {name: count for name, count in lines.items() if count > LONG_FILES.get(name, 300)} == {}


def test_functions_of_the_product_have_at_most_60_lines() -> None:
    lines = dict(one for path in sources(*PRODUCT) for one in functions(path))
    assert {name: count for name, count in lines.items() if count > 60} == {}


def test_calls_have_at_most_five_positional_arguments() -> None:
    many = [
        f"{name_of(path)}:{call.lineno}"
        for path in sources(*PRODUCT, "examples", "tools")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and sum(not isinstance(argument, ast.Starred) for argument in call.args) > 5
        and not any(f".{ast.unparse(call.func)}".endswith(f".{name}") for name in FOREIGN)
    ]
    assert not many


@pytest.mark.parametrize("folder", [*FOLDERS, ""])
def test_words_are_those_of_the_field(folder: str) -> None:
    """In names of things and files, comments, messages, documents and configs."""
    kinds = {".py", ".md", ".yaml", ".toml", ".json", ".cff", ""}
    paths = (ROOT / folder).rglob("*") if folder else ROOT.glob("*")
    files = [path for path in paths if path.is_file() and path.suffix in kinds]
    assert files
    found = [
        f"{name_of(path)}: {word.group()}"
        for path in files
        if path != Path(__file__) and path.name != "test_docs.py" and path.name != ".git"
        for text in (path.stem, path.read_text(encoding="utf-8"))
        for word in GONE.finditer(PARTS.sub(" ", text))
    ]
    assert not found


def test_base_names_of_tests_are_unique() -> None:
    """Or pytest could not collect two of them together."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) > 50
    assert sorted(names) == sorted(set(names))


def test_the_fast_lane_starts_no_ray_and_carries_out_no_run() -> None:
    """Whole runs, Ray and several ranks are of tests/integration and tests/faults."""
    heavy = re.compile(
        r"\bcarry_out\b|\bray\.init\b|\bray_service\(|\btwo_ranks\b|"
        r"\bsmall_(actors|cluster|runs)\b"
    )
    found = [
        f"{name_of(path)}: {match.group()}"
        for folder in ("unit", "contracts")
        for path in sources(f"tests/{folder}")
        if path != Path(__file__)
        for match in heavy.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not found


def test_the_loop_is_short() -> None:
    loop = ROOT / "branchgrpo" / "training" / "loop.py"
    lines = {name.partition(":")[2]: count for name, count in functions(loop)}
    assert len(loop.read_text(encoding="utf-8").splitlines()) <= 120
    assert lines["train"] + lines["step"] <= 40
