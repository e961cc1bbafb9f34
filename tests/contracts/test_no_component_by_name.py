"""The product knows no component by name: outside a table's own package nothing compares with a
shipped name, names a component's class, or guesses at keys that some have."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from branchgrpo.config.registry import TABLES

ROOT = Path(__file__).resolve().parents[2]
TARGETS = [target for table in TABLES.values() for target in table.shipped.values()]
NAMES = {name for table in TABLES.values() for name in table.shipped}
CLASSES = {target.rpartition(":")[2] for target in TARGETS}
MODULES = {target.partition(":")[0] for target in TARGETS}
OWN = [
    ROOT / "branchgrpo" / folder
    for folder in ("algo/advantage", "algo/loss", "algo/methods", "algo/pruning")
] + [ROOT / "branchgrpo" / folder for folder in ("models", "rewards", "sinks")]
PARTS = ("model", "method", "advantage", "loss", "rule", "reward")


def faults(text: str) -> Iterator[str]:
    """What names a component, with its line."""
    for node in ast.walk(ast.parse(text)):
        if _names_one(node):
            yield f"{getattr(node, 'lineno', 0)}: {ast.unparse(node)}"


def _names_one(node: ast.AST) -> bool:
    if isinstance(node, ast.Compare | ast.MatchValue):
        inner = list(ast.walk(node))
        literals = {one.value for one in inner if isinstance(one, ast.Constant) and _is_text(one)}
        # a key of some mapping may be called as a component is: state["steps"]
        keys = {
            one.slice.value
            for one in inner
            if isinstance(one, ast.Subscript) and isinstance(one.slice, ast.Constant)
        }
        return bool((literals & NAMES) - keys)
    if isinstance(node, ast.ImportFrom):
        return node.module in MODULES
    if isinstance(node, ast.Name | ast.Attribute):
        return (node.id if isinstance(node, ast.Name) else node.attr) in CLASSES
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
        owner = ast.unparse(node.args[0]).rpartition(".")[2]
        return owner in PARTS and _is_text(node.args[1])
    return False


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_nothing_outside_the_tables_names_a_component() -> None:
    files = [
        path
        for package in ("branchgrpo", "actors", "cluster")
        for path in sorted((ROOT / package).rglob("*.py"))
        if not any(own in path.parents for own in OWN)
    ]
    assert len(files) > 50
    found = [
        f"{path.relative_to(ROOT)}:{fault}"
        for path in files
        for fault in faults(path.read_text(encoding="utf-8"))
    ]
    assert not found


@pytest.mark.parametrize(
    "text",
    [
        'if config.method.name == "tempflow": pass',
        'if {"width", "depth"} & rules == {"width"}: pass',
        'modes = [rule.mode for rule in rules if rule.name in ("width",)]',
        "isinstance(config.method, BranchMethod)",
        "from branchgrpo.rewards.ocr import find",
        'rank = getattr(config.model, "lora_rank", 0)',
        'match name:\n    case "ocr": pass',
    ],
)
def test_the_walk_finds_what_names_one(text: str) -> None:
    assert len(list(faults(text))) >= 1


@pytest.mark.parametrize("text", ['state["steps"] >= 0', 'config.method.shape == "comb"'])
def test_the_walk_leaves_the_rest_alone(text: str) -> None:
    assert not list(faults(text))
