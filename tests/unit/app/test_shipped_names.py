"""Shipped configs by bare name, in every command that takes one, from any folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from branchgrpo.app.main import main
from branchgrpo.app.parser import parse
from branchgrpo.config.shipped import FOLDER, config_file, names
from branchgrpo.errors import UserError

EMBEDDED = Path(__file__).parents[3] / "branchgrpo" / "assets" / "tiny-flux"


@pytest.mark.parametrize(
    "words",
    [
        ["train", "NAME"],
        ["encode", "NAME"],
        ["prompts", "NAME"],
        ["config", "NAME"],
        ["doctor", "NAME"],
        ["compare", "dancegrpo", "--config", "NAME"],
        ["eval", str(EMBEDDED), "--config", "NAME"],
    ],
    ids=lambda words: words[0],
)
def test_a_name_that_there_is_not_is_one_line(
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [word.replace("NAME", "flux.1-dev-1nod") for word in words]
    monkeypatch.setattr(sys, "argv", ["branchgrpo", *arguments])
    assert main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: config: expected a YAML file or one of flux.1-dev-1gpu, ")
    assert line.endswith("got 'flux.1-dev-1nod'; did you mean flux.1-dev-1node?")


@pytest.mark.parametrize(
    "words",
    [["compare", "dancegrpo", "--config"], ["eval", str(EMBEDDED), "--config"], ["train"]],
    ids=lambda words: words[0],
)
def test_a_shipped_config_is_read(
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [*words, "wan2.1-1.3b-1node", "--rewards.0.train_on", "beauty"]
    monkeypatch.setattr(sys, "argv", ["branchgrpo", *arguments])
    assert main() == 2
    told = capsys.readouterr().err
    assert "--rewards.0.train_on" in told and "overall" in told  # of its reward, video_align


def test_a_file_of_ones_own_goes_first_and_a_folder_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart").mkdir()
    assert config_file("quickstart") == FOLDER / "quickstart.yaml"
    Path("quickstart").rmdir()
    Path("quickstart").write_text("run: {}\n")
    assert config_file("quickstart") == Path("quickstart")
    assert config_file(Path("my.yaml")) == Path("my.yaml")  # whoever reads it says that it is not
    with pytest.raises(UserError, match="did you mean quickstart"):
        config_file("quickstar")


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    from branchgrpo import __version__

    with pytest.raises(SystemExit) as ended:
        parse(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"branchgrpo {__version__}\n"


def test_names_of_folders_come_last_and_are_found() -> None:
    foldered = [name for name in names() if "/" in name]
    assert foldered and names()[-len(foldered) :] == foldered
    for name in names():
        assert config_file(name) == FOLDER / f"{name}.yaml" and config_file(name).is_file()
    with pytest.raises(UserError, match=r"got 'paper/mixx'; did you mean paper/mix\?"):
        config_file("paper/mixx")
    assert config_file("other/folder/mine") == Path("other/folder/mine")  # said when it is read
