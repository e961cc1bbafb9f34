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
from support.small_trees import QUICKSTART, quickstart

from branchgrpo import models, rewards, sinks
from branchgrpo.algo import advantage, loss, methods, pruning
from branchgrpo.config import load as config
from branchgrpo.config import registry as table
from branchgrpo.config.shipped import presets
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
    for package in (advantage, loss, methods, models, pruning, rewards, sinks):
        found |= dict.fromkeys(table.load(target) for target in package.REGISTRY.values())
    return list(found)


FIELDS = sorted({(model.__name__, field) for model in schema() for field in model.model_fields})


def attributes_read() -> set[str]:
    """Names that the program's code reads as attributes; a field's own definition is no such
    read."""
    files = [
        ROOT / "run.py",
        *(
            path
            for package in ("branchgrpo", "actors", "cluster")
            for path in (ROOT / package).rglob("*.py")
        ),
    ]
    nodes = (
        node
        for path in files
        if "pretrain" not in path.parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    )
    return {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


READ = attributes_read()


def one_line(overrides: dict[str, str]) -> str:
    with pytest.raises(UserError) as caught:
        quickstart(overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_loading_a_config_needs_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from pathlib import Path; from branchgrpo.config import load as "
        "config; c = config.load(Path(sys.argv[1])); config.dump(c); "
        "print([m for m in ('torch', 'ray', 'diffusers', 'transformers', 'onnxruntime') if "
        "m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(QUICKSTART)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {
            "rollout.fork_depth": "2",
            "method.stochastic": "all",
            "pruning": "[{name: width}, {name: depth, depths: [3]}]",
        },
    ],
)
def test_dump_is_read_back_as_the_same_config(tmp_path: Path, overrides: dict[str, str]) -> None:
    loaded = quickstart(overrides)
    path = tmp_path / "dumped.yaml"
    path.write_text(config.dump(loaded), encoding="utf-8")
    assert config.load(path) == loaded
    # defaults are written out
    assert set(yaml.safe_load(config.dump(loaded))) == {
        field.alias or name for name, field in config.Config.model_fields.items()
    }


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
        ({"method.fanout": "3", "method.leaves": "16"}, ["leaves", "81", "16"]),
        (
            {"method.fanout": "3", "method.leaves": "81", "method.branch_noise": "antithetic"},
            ["fanout", "even", "3"],
        ),
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
        ({"run.name": "2024:13:45"}, ["run.name", "2024:13:45"]),
        # more than the noise takes
        ({"run.seed": str(2**63)}, ["run.seed", "less than", str(2**63)]),
        ({"rewards.0.weight": "nan"}, ["rewards.0.weight", "finite"]),
        ({"learner.learning_rate": "inf"}, ["learner.learning_rate", "finite"]),
        ({"run.name": ""}, ["run.name", "expected text that matches"]),
        (
            {"run.iterations": "0", "run.max_minutes": "0"},
            ["run.iterations", "run.max_minutes", "0"],
        ),
        (
            {"run.iterations": "0", "learner.schedule": "cosine"},
            ["learner.schedule", "cosine", "run.iterations"],
        ),
        ({"evaluation.weights": "ema"}, ["evaluation.weights", "learner.ema"]),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(
    overrides: dict[str, str], parts: list[str]
) -> None:
    message = one_line(overrides)
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"run: [unclosed\nmodel: {",
        b"- a\n- b",
        b"",
        b"just text",
        b"\xff\xfe\x00",
        b"run: {name: !!python/name:os.system x}",
        b"? [a]\n: b",
    ],
)
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
    # without a preset, which would fill in for method, advantage and loss
    tree = yaml.safe_load(config.dump(quickstart()))
    for key in ("model", "prompts", "held_out", "method", "rewards", "advantage", "loss"):
        path = tmp_path / "part.yaml"
        path.write_text(
            yaml.safe_dump({name: value for name, value in tree.items() if name != key}),
            encoding="utf-8",
        )
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
    assert (
        found.run.seed,
        found.gates.enabled,
        found.learner.betas,
        found.learner.learning_rate,
    ) == (7, False, (0.8, 0.9), 1e-5)
    assert (found.pruning[0].name, found.pruning[0].window, found.loss.clip_range) == (
        "depth",
        3,
        0.01,
    )


# Presets


def written(
    tmp_path: Path, keys: dict[str, Any], without: tuple[str, ...] = config.METHOD_SECTIONS
) -> Path:
    """The quick start without its method, and with these keys."""
    tree = yaml.safe_load(QUICKSTART.read_text(encoding="utf-8"))
    path = tmp_path / "own.yaml"
    path.write_text(
        yaml.safe_dump({key: value for key, value in tree.items() if key not in without} | keys),
        encoding="utf-8",
    )
    return path


def test_a_files_own_keys_go_on_top_of_its_preset(tmp_path: Path) -> None:
    keys = {
        "preset": "branchgrpo-widthprune",
        "method": {"eta": 0.7},
        "loss": {"clip_range": 0.5},
        "sampling": {"shift": 2.0},
    }
    found = config.load(written(tmp_path, keys))
    assert (found.method.name, found.method.splits, found.method.eta) == (
        "branchgrpo",
        (0, 3, 6, 9),
        0.7,
    )
    assert (found.pruning[0].name, found.pruning[0].mode) == ("width", "parent_top1")
    assert (found.loss.clip_range, found.sampling.steps, found.sampling.shift) == (0.5, 20, 2.0)
    # lists are replaced
    assert config.load(written(tmp_path, keys | {"pruning": []})).pruning == ()
    assert config.load(written(tmp_path, keys), {"method.eta": "0.9"}).method.eta == 0.9


def test_components_of_different_names_do_not_mix(tmp_path: Path) -> None:
    chains = {"name": "chains", "chains": 4}
    # nothing of the preset's splits, kernel or eta
    found = config.load(written(tmp_path, {"preset": "branchgrpo", "method": chains}))
    assert found.method == config.load(QUICKSTART, {"method": str(chains)}).method
    same = config.load(
        written(tmp_path, {"preset": "branchgrpo", "method": {"name": "branchgrpo", "eta": 0.7}})
    ).method
    assert (same.splits, same.eta) == ((0, 3, 6, 9), 0.7)


def test_the_command_lines_preset_replaces_what_the_file_says_of_the_method(tmp_path: Path) -> None:
    keys = {
        "preset": "flow-dppo",
        "method": {"eta": 0.1},
        "pruning": [{"name": "depth", "window": 3}],
        "learner": {"learning_rate": 0.5},
    }
    found = config.load(written(tmp_path, keys), preset="dancegrpo")
    alone = config.load(QUICKSTART, preset="dancegrpo")
    for section in (*config.METHOD_SECTIONS, "sampling"):
        assert getattr(found, section) == getattr(alone, section), section
    assert found.pruning == () and (found.method.name, found.method.eta) == ("chains", 0.3)
    # of flow-dppo nothing is left; the file's own stays
    assert (found.learner.optimiser_steps, found.learner.learning_rate) == (3, 0.5)
    assert config.load(written(tmp_path, keys), preset="flow-dppo").learner.optimiser_steps == 2
    assert (
        config.load(written(tmp_path, keys), {"method.chains": "8"}, "dancegrpo").method.chains == 8
    )


@pytest.mark.parametrize("name", ["nonsense", "", "../quickstart", ["dancegrpo"], 3])
def test_unknown_presets_are_one_line_that_lists_the_known(tmp_path: Path, name: Any) -> None:
    with pytest.raises(
        UserError, match=r"preset: expected a YAML file or one of .*dancegrpo"
    ) as caught:
        config.load(written(tmp_path, {"preset": name}))
    assert "\n" not in str(caught.value) and repr(name) in str(caught.value)


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_read_back_from_its_dump(tmp_path: Path, name: str) -> None:
    found = config.load(QUICKSTART, preset=name)
    path = tmp_path / "dumped.yaml"
    path.write_text(config.dump(found), encoding="utf-8")
    assert (
        config.load(path)
        == found
        == config.load(written(tmp_path, {"preset": name}, (*config.METHOD_SECTIONS, "sampling")))
    )


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
    assert {
        "Config",
        "Learner",
        "DepthWise",
        "WidthPruning",
        "DepthPruning",
        "OcrReward",
        "FluxModel",
        "BranchMethod",
        "ClippedLoss",
    } <= names


@pytest.mark.parametrize(("model", "field"), FIELDS)
def test_every_key_has_a_description_and_is_read(model: str, field: str) -> None:
    (owner,) = (one for one in schema() if one.__name__ == model)
    assert owner.model_fields[field].description
    # `name` of a table entry is read by pydantic, which picks the class by it; it is also an
    # attribute that the code reads
    assert field in READ, f"nothing reads {model}.{field}"


def test_table_entries_are_told_apart_by_name() -> None:
    for package in (advantage, loss, methods, models, pruning, rewards, sinks):
        for key, target in package.REGISTRY.items():
            assert table.load(target).model_fields["name"].default == key
