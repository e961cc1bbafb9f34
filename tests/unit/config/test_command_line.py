"""What run.py says of its arguments, in one line each."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.small_trees import quickstart

from branchgrpo.app.check import check
from branchgrpo.app.main import main
from branchgrpo.app.parser import parse
from branchgrpo.config.shipped import presets
from branchgrpo.errors import UserError


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """run.py's exit code."""
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    try:
        return main()
    except SystemExit as left:  # argparse's way
        return int(left.code or 0)


def test_prompts_is_an_option_of_sample_and_a_key_elsewhere() -> None:
    found, keys = parse(["sample", "run", "a = b", "run.seed=3", "--prompts", "mine.txt"])
    assert (found.texts, found.file, keys) == (["a = b", "run.seed=3"], "mine.txt", {})
    _, keys = parse(["train", "--prompts", "mine.txt", "run.seed=3"])
    assert keys == {"prompts": "mine.txt", "run.seed": "3"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["compare", "dancegrpo", "--budget", "4h"],
            "error: --budget: expected iterations (50), seconds (240s) or minutes (4m), got '4h'",
        ),
        (
            ["compare", "dancegrpo", "dancegrpo"],
            "error: compare: expected different methods, got dancegrpo dancegrpo",
        ),
        (["compare", "dancegrpo", "luckgrpo"], "got 'luckgrpo'"),
        (["compare", "dancegrpo", "--config", "no/such.yaml"], "cannot read no/such.yaml"),
        (["compare", "dancegrpo", "--run.nmae", "x"], "run.nmae: unknown key"),
        (
            ["compare", "dancegrpo", "--evaluation.prompts", "99999"],
            "held_out: expected at least 99999 prompts",
        ),
        (
            ["eval", "no/such/folder"],
            "model.path: expected a diffusers folder with model_index.json, found none at "
            "no/such/folder",
        ),
        (
            ["compare", "dancegrpo", "--evaluation.prompts"],
            "expected a value after --evaluation.prompts",
        ),
        (["eval", "no/such/folder", "--run.iterations", "few"], "run.iterations"),
        (["train", "--preset", "luckgrpo"], "got 'luckgrpo'"),
        (["config", "--run.iterations", "0", "--run.max_minutes", "0"], "run.iterations"),
    ],
)
def test_bad_requests_are_one_line(
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert command(monkeypatch, "--run.folder", str(tmp_path / "runs"), *arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and words in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["sample", "no/such/folder", "a cat"],
            "sample: expected a run folder or a pipeline's, found none at no/such/folder",
        ),
        (["sample", "."], "sample: expected at least one prompt"),
        (["sample", ".", "a cat", "--n", "0"], "got 1 prompts, 0 pictures and 0 steps"),
        (["sample", ".", "a cat", "--steps", "1"], "got 1 prompts, 8 pictures and 1 steps"),
        (["sample", ".", "a cat", "--seed", "-1"], "--seed: expected a number from 0"),
        (["sample", ".", "a cat", " "], "expected prompts with some text, got an empty one"),
        (["sample", ".", "--prompts", "none.txt"], "--prompts: expected a file of prompts"),
    ],
)
def test_pictures_that_cannot_be_drawn_are_one_line(
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and words in err


@pytest.mark.parametrize("key", ["evaluation.prompts", "evaluation.diversity"])
def test_too_few_held_out_prompts_are_found_before_anything_starts(key: str) -> None:
    with pytest.raises(UserError, match="held_out: expected at least 99999 prompts"):
        check(quickstart({key: "99999"}))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare", "dancegrpo", "--seeds", "0"], "--seeds: expected at least 1, got 0"),
        (["compare", "dancegrpo", "--seeds", "few"], "--seeds"),
        (["compare", "dancegrpo", "--grid", "a=1", "--grid-seeds", "0"], "--grid-seeds: expected"),
        (["compare", "dancegrpo", "--grid-budget", "9s"], "--grid-budget are of --grid"),
        (["compare"], "METHOD"),
        (["eval"], "folder"),
        (["retrain"], "retrain"),
    ],
)
def test_bad_usage_ends_with_a_line_of_its_own(
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(monkeypatch, *arguments) == 2
    usage, *_, last = capsys.readouterr().err.strip().splitlines()
    assert usage.startswith("usage: branchgrpo") and words in last and "error: " in last


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], {"train", "compare", "eval", "config", "branchgrpo-splits"}),
        (["compare", "--help"], set(presets())),
    ],
)
def test_help(
    arguments: list[str],
    words: set[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "10000")  # names are not cut at their hyphens
    assert command(monkeypatch, *arguments) == 0
    assert words <= set(capsys.readouterr().out.replace(",", " ").replace(";", " ").split())
