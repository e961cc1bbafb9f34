"""`branchgrpo new`: what it writes works, by its own test and in a config."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.small_trees import quickstart

from branchgrpo.app.main import main
from branchgrpo.app.new import KINDS, new
from branchgrpo.errors import UserError


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_passes_its_own_test(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["branchgrpo", "new", kind, "own_part"])
    assert main() == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own_part.py", "test_own_part.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_own_part.py"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout
    said = capsys.readouterr().out.splitlines()
    member = "own_part" if kind == "reward" else "OwnPart"
    assert len(said) == 2 and f"--{KINDS[kind]}.name ./own_part.py:{member}" in said[1]


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
