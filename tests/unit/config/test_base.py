"""`base`: a config on top of another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from branchgrpo.config import load as configs
from branchgrpo.config.schema import Config
from branchgrpo.config.shipped import QUICKSTART, config_file
from branchgrpo.errors import UserError


def written(folder: Path, **texts: str) -> Path:
    """Files NAME.yaml; the first one's path."""
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / f"{next(iter(texts))}.yaml"


def loaded(folder: Path, **texts: str) -> Config:
    return configs.load(written(folder, **texts))


def refused(folder: Path, **texts: str) -> str:
    with pytest.raises(UserError) as caught:
        loaded(folder, **texts)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{folder}/", "")


def test_a_files_keys_go_on_top_of_its_bases(tmp_path: Path) -> None:
    found = loaded(
        tmp_path,
        top="base: middle.yaml\nrollout: {prompts: 7}\n",
        middle="base: quickstart\nrun: {name: mine}\nrollout: {prompts: 6, max_batch: 5}\n",
    )
    below = configs.load(QUICKSTART)
    assert (found.run.name, found.rollout.prompts, found.rollout.max_batch) == ("mine", 7, 5)
    assert found.method == below.method and found.learner == below.learner


def test_a_preset_replaces_what_the_base_says_about_the_method(tmp_path: Path) -> None:
    below = "base: quickstart\npreset: branchgrpo-widthprune\nloss: {clip_range: 0.5}\n"
    found = loaded(tmp_path, top="base: below.yaml\npreset: dancegrpo\n", below=below)
    wanted = configs.load(QUICKSTART, preset="dancegrpo")
    for key in ("method", "advantage", "pruning", "loss"):
        assert getattr(found, key) == getattr(wanted, key)
    kept = loaded(tmp_path, top="base: below.yaml\n", below=below)
    assert kept.pruning and kept.loss.clip_range == 0.5
    over = configs.load(tmp_path / "top.yaml", preset="dancegrpo")
    assert over == found


def test_a_base_is_named_by_its_path_from_the_file_or_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep").mkdir()
    path = written(tmp_path / "deep", top="base: ../below.yaml\n")
    written(tmp_path, below="base: quickstart\nrun: {name: below}\n")
    monkeypatch.chdir("/")
    assert configs.load(path).run.name == "below"
    assert configs.load(config_file("quickstart")) == loaded(tmp_path, top="base: quickstart\n")


def test_bad_bases_are_one_line(tmp_path: Path) -> None:
    found = refused(tmp_path, top="base: quickstar\n")
    assert found.startswith("top.yaml:1: base: expected a YAML file or one of ")
    assert found.endswith("got 'quickstar'; did you mean quickstart?")
    found = refused(tmp_path, top="run: {}\nbase: other.yaml\n", other="base: top.yaml\n")
    assert found == "other.yaml:1: base: expected a file that is not based on this, got top.yaml"
    assert "gone.yaml" in refused(tmp_path, top="base: gone.yaml\n")
    found = refused(tmp_path, top="base: below.yaml\n", below="base: quickstart\nrollot: {}\n")
    assert found.startswith("below.yaml:2: rollot: unknown key; did you mean rollout")
