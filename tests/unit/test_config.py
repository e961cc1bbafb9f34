"""Configs: checked before anything starts, one line per mistake, no key without a use."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel
from small_trees import QUICKSTART, quickstart

from branchgrpo import advantage, config, loss, methods, models, pruning, rewards, table
from branchgrpo.errors import UserError

ROOT = QUICKSTART.parents[1]


def reachable(kind: Any) -> Iterator[type[BaseModel]]:
    """Pydantic models inside a type."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
        for field in kind.model_fields.values():
            yield from reachable(field.annotation)
    for part in get_args(kind):
        yield from reachable(part)


def schema() -> list[type[BaseModel]]:
    """Every model that a config may hold."""
    found = dict.fromkeys(reachable(config.Config))
    for package in (advantage, loss, methods, models, pruning, rewards):
        found |= dict.fromkeys(table.load(target) for target in package.TABLE.values())
    return list(found)


FIELDS = sorted({(model.__name__, field) for model in schema() for field in model.model_fields})


def attributes_read() -> set[str]:
    """Names that the program's code reads as attributes; a field's own definition is no such read."""
    files = [ROOT / "run.py", *(path for package in ("branchgrpo", "actors", "cluster") for path in (ROOT / package).rglob("*.py"))]
    nodes = (node for path in files if "pretrain" not in path.parts for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


READ = attributes_read()


def one_line(overrides: dict[str, str]) -> str:
    with pytest.raises(UserError) as caught:
        quickstart(overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_loading_a_config_needs_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from pathlib import Path; from branchgrpo import config; c = config.load(Path(sys.argv[1])); config.dump(c); "
        "print([m for m in ('torch', 'ray', 'diffusers', 'transformers', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(QUICKSTART)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_all_shipped_configs_load() -> None:
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        if path.parent != config.PRESETS:
            config.load(path)
    for name in config.presets():
        config.load(QUICKSTART, preset=name)


@pytest.mark.parametrize("overrides", [{}, {"rollout.fork_depth": "2", "method.stochastic": "all", "pruning": "[{name: width}, {name: depth, depths: [3]}]"}])
def test_dump_is_read_back_as_the_same_config(tmp_path: Path, overrides: dict[str, str]) -> None:
    loaded = quickstart(overrides)
    path = tmp_path / "dumped.yaml"
    path.write_text(config.dump(loaded), encoding="utf-8")
    assert config.load(path) == loaded
    assert set(yaml.safe_load(config.dump(loaded))) == set(config.Config.model_fields)  # defaults are written out


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"run.nmae": "x"}, ["run.nmae", "unknown key"]),
        ({"nonsense": "1"}, ["nonsense", "unknown key"]),
        ({"rewards.0.colour": "1"}, ["rewards.0", "colour", "unknown key"]),
        ({"method.splits": "[0, 3, 3, 9]"}, ["splits", "[0, 3, 3, 9]"]),
        ({"method.splits": "[3, 0, 6, 9]"}, ["splits", "[3, 0, 6, 9]"]),
        ({"method.splits": "[0, 3, 6, 19]"}, ["splits", "0 … 18", "19"]),
        ({"method.splits": "[-1, 3, 6, 9]"}, ["splits", "-1"]),
        ({"method.splits": "[]", "method.leaves": "1"}, ["splits"]),
        ({"sampling.steps": "13"}, ["splits", "12"]),
        ({"method.leaves": "12"}, ["leaves", "16", "12"]),
        ({"method.fanout": "3"}, ["leaves", "81", "16"]),
        ({"method.fanout": "3", "method.leaves": "81", "method.branch_noise": "antithetic"}, ["fanout", "even", "3"]),
        ({"evaluation.metric": "ocr/beauty"}, ["evaluation.metric", "ocr/beauty", "ocr/exact"]),
        ({"rewards": "[]"}, ["rewards"]),
        ({"rewards.0.target": "number"}, ["rewards.0", "target", "number"]),
        ({"rewards.0.report": "[]"}, ["report"]),
        ({"rewards.0.train_on": "luck"}, ["rewards.0", "train_on", "luck"]),
        ({"learner.learning_rate": "fast"}, ["learner.learning_rate", "fast"]),
        ({"learner.learning_rate": "-1.0"}, ["learner.learning_rate", "-1.0"]),
        ({"pruning": "[{name: hedge}]"}, ["pruning.0", "hedge"]),
        ({"pruning": "[{name: width, window: 3}]"}, ["pruning.0", "window", "unknown key"]),
        ({"run.name": "a/b"}, ["run.name", "a/b"]),
        ({"rollout.fork_depth": "deep"}, ["rollout.fork_depth", "deep"]),
        ({"model": "null"}, ["model"]),
        ({"rewards.3.train_on": "exact"}, ["rewards.3.train_on"]),
        ({"rewards.first.train_on": "exact"}, ["rewards.first.train_on"]),
        ({"prompts.deeper": "x"}, ["prompts.deeper"]),
        ({"prompts.deeper.still": "x"}, ["prompts.deeper.still"]),
        ({"run.name": "[unclosed"}, ["run.name", "[unclosed"]),
        ({"run.name": "2024-13-45"}, ["run.name", "2024-13-45"]),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(overrides: dict[str, str], parts: list[str]) -> None:
    message = one_line(overrides)
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize("content", [None, b"run: [unclosed\nmodel: {", b"- a\n- b", b"", b"just text", b"\xff\xfe\x00", b"run: {name: 2024-13-45}"])
def test_files_that_are_no_config(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        config.load(path)
    assert "\n" not in str(caught.value) and "bad.yaml" in str(caught.value)


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        config.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_sections_are_named(tmp_path: Path) -> None:
    tree = yaml.safe_load(QUICKSTART.read_text(encoding="utf-8"))
    for key in ("model", "prompts", "held_out", "method", "rewards", "advantage", "loss"):
        path = tmp_path / "part.yaml"
        path.write_text(yaml.safe_dump({name: value for name, value in tree.items() if name != key}), encoding="utf-8")
        with pytest.raises(UserError, match=key) as caught:
            config.load(path)
        assert "\n" not in str(caught.value)


def test_dotted_overrides() -> None:
    found = quickstart(
        {
            "rewards.0.train_on": "exact",
            "rewards.0.weight": "2.5",
            "method.splits.1": "4",
            "run.seed": "7",
            "gates.enabled": "false",  # a section that the file does not have
            "learner.betas": "[0.8, 0.9]",
            "learner.learning_rate": "1e-5",
            "pruning": "[{name: depth, window: 3}]",
            "loss.clip_range": "0.01",
        }
    )
    assert (found.rewards[0].train_on, found.rewards[0].weight) == ("exact", 2.5)
    assert found.rewards[0].report == ("exact", "edit", "likelihood")
    assert found.method.splits == (3, 4, 9, 12)
    assert (found.run.seed, found.gates.enabled, found.learner.betas, found.learner.learning_rate) == (7, False, (0.8, 0.9), 1e-5)
    assert (found.pruning[0].name, found.pruning[0].window, found.loss.clip_range) == ("depth", 3, 0.01)


def test_the_deciding_metric() -> None:
    assert quickstart().metric == "ocr/exact"
    assert quickstart({"evaluation.metric": "ocr/edit"}).metric == "ocr/edit"
    assert quickstart({"rewards.0.report": "[likelihood]"}).metric == "ocr/likelihood"


def test_a_config_cannot_be_changed() -> None:
    found = quickstart()
    with pytest.raises(ValueError, match="frozen"):
        found.run.seed = 3
    with pytest.raises(ValueError, match="frozen"):
        found.method.eta = 3.0


def test_schema_covers_every_table() -> None:
    names = {model.__name__ for model in schema()}
    assert {"Config", "Learner", "DepthWise", "WidthPruning", "DepthPruning", "OcrReward", "FluxModel", "BranchMethod", "ClippedLoss"} <= names


@pytest.mark.parametrize(("model", "field"), FIELDS)
def test_every_key_has_a_description_and_is_read(model: str, field: str) -> None:
    (owner,) = (one for one in schema() if one.__name__ == model)
    assert owner.model_fields[field].description
    # `name` of a table entry is read by pydantic, which picks the class by it; it is also an attribute that the code reads
    assert field in READ, f"nothing reads {model}.{field}"


def test_table_entries_are_told_apart_by_name() -> None:
    for package in (advantage, loss, methods, models, pruning, rewards):
        for key, target in package.TABLE.items():
            assert table.load(target).model_fields["name"].default == key
