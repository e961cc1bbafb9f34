"""The layers: the method knows neither actors nor cluster, the cluster knows nothing of the method."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = {
    "branchgrpo": {"ray", "actors", "cluster", "run"},
    "actors": {"ray", "cluster", "run"},
    "cluster": {"branchgrpo", "actors", "torch", "run"},
}


def imported(path: Path) -> set[str]:
    """Top-level packages that a module imports anywhere, functions and strings of import_module included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import"
            found.add(str(node.module).partition(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")) and isinstance(node.args[0], ast.Constant):
            found.add(str(node.args[0].value).partition(".")[0])
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_layers(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert not imported(path) & FORBIDDEN[package], path.relative_to(ROOT)


def test_only_run_composes_all_three() -> None:
    layers = set(FORBIDDEN)
    own = [path for path in ROOT.glob("*.py")] + [path for package in FORBIDDEN for path in (ROOT / package).rglob("*.py")]
    assert [path.relative_to(ROOT).as_posix() for path in own if layers <= imported(path)] == ["run.py"]
