"""Code in the documents does what is said of it: functions, the embedded model's calls, whole runs
with fewer iterations; and Ray's own commands are taken by Ray's parsers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image
from support.documents import ROOT, Block, blocks, commands

PYTHON = blocks("python")
SQUARE = np.full((32, 32, 3), 255, np.uint8)
SQUARE[8:16, 8:24] = 0
"""An eighth of it is ink."""


def the(page: str, word: str) -> Block:
    """The one block of Python of a page with this word."""
    (found,) = [block for block in PYTHON if block.page == page and word in block.text]
    return found


def run(block: Block, **names: Any) -> dict[str, Any]:
    """What the block defines."""
    exec(compile(block.text, str(block), "exec"), names)
    return names


def test_functions_that_are_shown_score_as_they_say() -> None:
    images = [Image.fromarray(SQUARE)]
    assert run(the("docs/own-model.md", "def large"))["large"](images, []) == [0.125]
    assert run(the("docs/plugins.md", "def warmth"))["warmth"](images, []) == [255 * 0.875]


def test_the_class_that_is_shown_scores_as_it_says() -> None:
    found = run(the("docs/plugins.md", "class Warmth"))
    scorer = found["Warmth"](channel=1).build(None)
    assert scorer.score(SQUARE[None, None], [])["score"] == pytest.approx([255 * 0.875])


@pytest.mark.networks
@pytest.mark.parametrize("word", ["FluxPipeline", "TinyFluxSizes"])
def test_calls_of_the_embedded_model(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "branchgrpo").symlink_to(ROOT / "branchgrpo")
    found = run(the("docs/embedded-model.md", word))
    if word == "FluxPipeline":
        assert found["picture"].size == (32, 32)
    else:
        assert (tmp_path / "folder" / "model_index.json").is_file()


def fewer(block: Block) -> Block:
    """The block with two iterations, and few held-out prompts."""
    assert '"run.iterations": 50' in block.text
    text = block.text.replace(
        '"run.iterations": 50', '"run.iterations": 2, "evaluation.prompts": 16'
    )
    return Block(block.page, block.line, block.language, text)


@pytest.mark.slow
def test_the_first_block_of_the_api_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = run(fewer(the("docs/api.md", "def yellow")))
    assert {"before", "after", "difference"} <= found["result"].summary["held_out"][
        "yellow/score"
    ].keys()


@pytest.mark.slow
def test_the_page_on_ones_own_model_leads_to_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = "docs/own-model.md"
    shell = [block for block in blocks("") if block.page == page and "prompts.txt" in block.text]
    subprocess.run(["bash", "-c", shell[0].text], check=True)
    assert len((tmp_path / "prompts.txt").read_text().splitlines()) == 96
    (tmp_path / "large.py").write_text(the(page, "def large").text)
    (config,) = [
        block for block in blocks("yaml") if block.page == page and "quickstart" in block.text
    ]
    (tmp_path / "my.yaml").write_text(config.text)
    result = run(fewer(the(page, "my.yaml")))["result"]
    assert Image.open("star.png").size == (32, 32)
    held_out = json.loads((result.folder / "held_out.json").read_text())
    assert {"large/score", "colour/score"} <= held_out["before"].keys()


ALONE = {"config", "new"}
"""Commands that need neither Ray nor a GPU; and those with --help or --dry-run."""


def alone() -> list[str]:
    found = [words for block in blocks("", "bash") for words in commands(block.text)]
    ours = [words for words in found if words[0] == "branchgrpo"]
    return sorted(
        {
            " ".join(words)
            for words in ours
            if words[1] in ALONE or {"--help", "--dry-run"} & set(words)
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("text", alone())
def test_commands_that_need_nothing_run(text: str, tmp_path: Path) -> None:
    for name in ("my.yaml", "mine.yaml"):
        base = "quickstart" if name == "my.yaml" else "sd3.5-medium-1gpu"
        (tmp_path / name).write_text(f"base: {base}\n")
    command = [sys.executable, "-m", "branchgrpo", *text.split()[1:]]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def ray_commands() -> list[list[str]]:
    found = [words for block in blocks("", "bash") for words in commands(block.text)]
    return [words[words.index("ray") :] for words in found if "ray" in words]


def test_commands_of_ray_are_taken_by_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.scripts.scripts import cli

    given = ray_commands()
    assert len(given) >= 5
    for words in given:
        command: click.Command = cli
        context, rest = None, words[1:]
        while isinstance(command, click.Group):
            found = command.get_command(click.Context(command), rest[0])
            assert found is not None, words
            command, rest = found, rest[1:]
        context = command.make_context(command.name, list(rest))
        assert context is not None
