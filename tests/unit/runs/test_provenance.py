"""Where a run comes from, without its secrets."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from support.small_trees import quickstart

from branchgrpo.files.masks import MASK
from branchgrpo.runs import provenance

GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]


@pytest.mark.parametrize(
    "argument",
    [
        ["--rewards.0.runtime_env.env_vars.TOKEN", "very-secret"],
        ["--rewards.0.runtime_env.env_vars.TOKEN=very-secret"],
        ["rewards.0.runtime_env.env_vars.TOKEN=very-secret"],
        ["--rewards", "[{name: jpeg, runtime_env: {env_vars: {TOKEN: very-secret}}}]"],
        ["--checkpoint.folder", "s3://me:very-secret@host/runs"],
        ["--checkpoint.folder=https://host/runs?token=very-secret"],
        ["--resume", "https://host/runs?sig=very-secret"],
        ["https://me:very-secret@host/config.yaml"],
    ],
)
def test_a_command_has_no_secrets(argument: list[str]) -> None:
    told = provenance.command(
        ["/usr/lib/branchgrpo/__main__.py", "train", *argument, "--run.seed", "3"]
    )
    assert "very-secret" not in told and MASK in told
    assert told.startswith("branchgrpo train") and told.endswith("--run.seed 3")


def test_a_command_is_what_a_shell_takes() -> None:
    arguments = [
        "branchgrpo",
        "train",
        "my config.yaml",
        "--rewards",
        "[{name: ocr}]",
        "run.seed=1",
    ]
    told = provenance.command(arguments)
    assert told == "branchgrpo train 'my config.yaml' --rewards '[{name: ocr}]' run.seed=1"
    reference = "--rewards.0.runtime_env.env_vars.TOKEN"  # names a variable, no secret
    assert provenance.command(["b", reference, "${TOKEN}"]) == f"b {reference} '${{TOKEN}}'"


def test_git_tells_the_commit_and_whether_all_is_in_it(tmp_path: Path) -> None:
    assert provenance.git(tmp_path) is None
    subprocess.run([*GIT, "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "a").write_text("a")
    for line in (["add", "a"], ["commit", "-qm", "a"]):
        subprocess.run([*GIT, "-C", str(tmp_path), *line], check=True)
    found = provenance.git(tmp_path)
    assert found and len(found["commit"]) == 40 and found["clean"] is True
    (tmp_path / "b").write_text("b")
    assert provenance.git(tmp_path) == found | {"clean": False}


def test_every_driver_tells_of_itself(tmp_path: Path) -> None:
    assert provenance.read(tmp_path) == []
    config = quickstart({"run.seed": "5"})
    for number, cards in ((1, None), (2, ["H100"])):
        provenance.write(tmp_path, number, provenance.provenance(config, ["branchgrpo"], cards))
    (tmp_path / "drivers" / "000003.provenance.json").write_text("{")  # damaged
    first, second = provenance.read(tmp_path)
    assert first["cards"] is None and second["cards"] == ["H100"] and first["seed"] == 5
    assert first["command"] == "branchgrpo" and first["host"]
    assert {"branchgrpo", "python", "torch", "ray"} <= first["versions"].keys()
    assert json.loads((tmp_path / "drivers" / "000001.provenance.json").read_text()) == first
