"""`branchgrpo new`: what it writes works, by its own test and in a config."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.small_trees import quickstart

from branchgrpo.app.new import new
from branchgrpo.errors import UserError


def test_the_reward_is_one_of_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    new("reward", "warmth", tmp_path)
    config = quickstart({"rewards.0.name": "./warmth.py:warmth", "rewards.0.weight": "2"})
    assert config.metric == "warmth/score" and config.rewards[0].weight == 2


@pytest.mark.parametrize("name", ["own_part", "test_own_part"])
def test_files_that_exist_are_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match=f"expected no file .*/{name}.py, which exists"):
        new("reward", "own_part", tmp_path)
    assert [path.read_text(encoding="utf-8") for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["a-b", "3d", "class", "json", "a/b", ""])
def test_names_that_python_cannot_import(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a name for a Python module, as my_model"):
        new("model", name, tmp_path)
    assert not list(tmp_path.iterdir())
