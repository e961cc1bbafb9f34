"""Every YAML file under configs/ is a config as it stands, or a preset that makes one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.small_trees import QUICKSTART

from branchgrpo.config import load as config
from branchgrpo.config.shipped import names, presets
from branchgrpo.errors import UserError

CONFIGS = QUICKSTART.parent


def failures(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """All YAML files below a folder, and those that do not load, with why."""
    files = sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")])
    found = {}
    for path in files:
        try:
            if path.parent == folder:
                config.load(path)
            else:
                config.load(folder / "quickstart.yaml", preset=str(path))
        except UserError as error:
            found[path.relative_to(folder).as_posix()] = str(error)
    return files, found


def test_all_shipped_configs_load() -> None:
    files, found = failures(CONFIGS)
    assert not found
    # none is left out, and none lies where no command finds it
    assert sorted(path.stem for path in files if path.parent == CONFIGS) == names()
    assert sorted(path.stem for path in files if path.parent != CONFIGS) == presets()
    assert len(names()) >= 6 and len(presets()) >= 22


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("flux.1-dev-1node.yaml", "learner:", "lerner:", "lerner: unknown key; did you mean"),
        ("methods/tempflow.yaml", "name: tempflow", "name: tempflo", "did you mean tempflow?"),
        ("methods/dancegrpo.yaml", "chains:", "chain:", "unknown key of chains"),
    ],
)
def test_one_that_does_not_load_is_reported(
    file: str, old: str, new: str, words: str, tmp_path: Path
) -> None:
    folder = tmp_path / "configs"
    shutil.copytree(CONFIGS, folder)
    text = (folder / file).read_text(encoding="utf-8")
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    _, found = failures(folder)
    assert list(found) == [file] and words in found[file], found
