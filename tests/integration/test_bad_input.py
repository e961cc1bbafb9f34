"""Bad input ends in one clear line, exit code 2, and writes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_local_ray import run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rollout.wrkers", "3"], "rollout.wrkers: unknown key"),
        (["--method.splits", "[3, 3, 6, 9]"], "without duplicates"),
        (["--method.splits", "[3, 6, 9, 19]"], "got 19"),
        (["--method.leaves", "12"], "give 16 leaves, expected 12"),
        (["--prompts", "no/such/file.txt"], "prompts: expected a file of prompts, found none at"),
        (["--model.path", "no/such/model"], "model.path: expected a diffusers folder"),
        (["--model.height", "36"], "expected multiples of 8, got 36"),
        (["--evaluation.prompts", "9999"], "held_out: expected at least 9999 prompts"),
        (["stray"], "config: expected a YAML file or one of flux.1-dev-1gpu, "),
    ],
)
def test_one_line(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = run("train", *arguments, "--run.folder", str(tmp_path / "runs"))
    assert done.returncode == 2
    assert words in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_impossible_resources_name_what_is_missing(tmp_path: Path) -> None:
    done = run(
        "train",
        "--rollout.cpus",
        "1000",
        "--cluster.wait_seconds",
        "1",
        "--cluster.dashboard",
        "false",
        "--run.folder",
        str(tmp_path / "runs"),
    )
    assert done.returncode == 2
    assert (
        "error: cluster: expected room for 2 rollout × 1000 CPU" in done.stderr
        and "missing" in done.stderr
    )
    assert not (tmp_path / "runs").exists()
