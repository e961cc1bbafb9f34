"""The layers: the method knows neither actors nor cluster, the cluster knows nothing of the method;
rooms import downwards."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = {
    "branchgrpo": {"ray", "actors", "cluster", "run", "tools"},
    "actors": {"ray", "cluster", "run", "tools"},
    "cluster": {"branchgrpo", "actors", "torch", "run", "tools"},
}
APP = ROOT / "branchgrpo" / "app"
"""Composes all three."""

BELOW: dict[str, set[str]] = {
    "algo": {"types"},
    "files": {"errors"},
    "config": {"algo", "models", "rewards", "sinks", "files", "errors", "types"},
    "models": {"algo", "files", "errors", "types"},
    "sinks": {"files", "errors", "types"},
    "rewards": {"files", "models", "errors", "types"},
    "estimate": {"algo", "config", "learner", "models", "errors", "types"},
}
"""What a room of branchgrpo may import of it, beside itself."""


def imported(path: Path, depth: int = 1) -> set[str]:
    """Packages that a module imports anywhere, functions and strings of import_module included, to
    so many names."""
    return {".".join(name.split(".")[:depth]) for name in _imported(path)}


@cache
def _imported(path: Path) -> frozenset[str]:
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith(("import_module", "__import__"))
            and isinstance(node.args[0], ast.Constant)
        ):
            found.add(str(node.args[0].value))
    return frozenset(found)


@pytest.mark.parametrize("package", FORBIDDEN)
def test_layers(package: str) -> None:
    files = [path for path in sorted((ROOT / package).rglob("*.py")) if APP not in path.parents]
    assert files
    for path in files:
        assert not imported(path) & FORBIDDEN[package], path.relative_to(ROOT)


def test_only_the_app_composes_all_three() -> None:
    own = [path for package in FORBIDDEN for path in (ROOT / package).rglob("*.py")]
    found = [path for path in own if set(FORBIDDEN) <= imported(path)]
    assert sorted(path.relative_to(ROOT).as_posix() for path in found) == [
        "branchgrpo/app/encode.py",
        "branchgrpo/app/service.py",
    ]
    package = ROOT / "branchgrpo"
    entries = [package / "__init__.py", package / "__main__.py"]  # lazily; and the command
    assert not [
        path
        for path in own
        if "branchgrpo.app" in imported(path, 2) and APP not in path.parents and path not in entries
    ]


@pytest.mark.parametrize("room", BELOW)
def test_rooms_import_downwards(room: str) -> None:
    allowed = {f"branchgrpo.{name}" for name in BELOW[room] | {room}}
    for path in sorted((ROOT / "branchgrpo" / room).rglob("*.py")):
        own = {name for name in imported(path, 2) if name.startswith("branchgrpo.")}
        assert own <= allowed, path.relative_to(ROOT)


def test_rooms_import_one_another_in_no_circle() -> None:
    below = {
        room.name: {
            name.split(".")[1]
            for path in room.rglob("*.py")
            for name in imported(path, 2)
            if name.startswith("branchgrpo.")
        }
        - {room.name}
        for room in (ROOT / "branchgrpo").iterdir()
        if room.is_dir()
    }
    done = set[str]()
    while free := [
        room for room in below if room not in done and not (below[room] & set(below)) - done
    ]:
        done |= set(free)
    assert not set(below) - done, {
        room: below[room] & set(below) - done for room in set(below) - done
    }


@pytest.mark.parametrize("package", ["actors", "branchgrpo", "cluster"])
def test_modules_import_one_another_in_no_circle(package: str) -> None:
    """Anywhere: in functions and for types alone, too."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    below = {
        module: {name for depth in range(2, 6) for name in imported(path, depth)} & set(modules)
        for module, path in modules.items()
    }
    assert len(below) > 4 and any(below.values())
    done = set[str]()
    while free := [module for module in below if module not in done and not below[module] - done]:
        done |= set(free)
    assert not set(below) - done, {module: below[module] - done for module in set(below) - done}


def test_few_files_lie_outside_the_rooms() -> None:
    assert len([path for path in (ROOT / "branchgrpo").iterdir() if path.is_file()]) <= 6
