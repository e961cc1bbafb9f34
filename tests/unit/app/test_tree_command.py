"""What `branchgrpo tree` refuses before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.small_trees import quickstart

from branchgrpo.app.tree import drawn
from branchgrpo.config import load as configs
from branchgrpo.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's, without checkpoints."""
    loaded = quickstart({"run.folder": str(tmp_path)})
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text(configs.dump(loaded), encoding="utf-8")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("iterations", "prompt", "line"),
    [
        ([3], None, "--iteration: expected one of iteration 3 in .*checkpoints, found none"),
        ([], None, "--iteration: expected a valid checkpoint in .*, found none"),
        ([0, 1, 2], None, "--iteration: expected one or two numbers ≥ 0, got 0 1 2"),
        ([-1], None, "--iteration: expected one or two numbers ≥ 0, got -1"),
        ([0], 2772, "--prompt: expected a number from 0 to 2771, got 2772"),
        ([0], -1, "--prompt: expected a number from 0 to 2771, got -1"),
    ],
)
def test_what_is_not_there_is_said(
    folder: Path, iterations: list[int], prompt: int | None, line: str
) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match=line):
        drawn(folder, iterations, prompt, None, {})
    assert sorted(folder.rglob("*")) == before


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected the folder of a run, got .*no config\.yaml"):
        drawn(tmp_path, [], None, None, {})


def test_the_page_has_the_suffix_of_a_page(folder: Path) -> None:
    with pytest.raises(UserError, match=r"--out: expected a file NAME\.html, got tree\.png"):
        drawn(folder, [0], None, Path("tree.png"), {})
