"""Suites by name: their published formats, what is missing, and means by category."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from support.small_trees import quickstart

from branchgrpo.data import prompts, suites
from branchgrpo.data.lists import Prompts
from branchgrpo.errors import UserError
from branchgrpo.report import categories
from branchgrpo.report.settings import settings, words
from branchgrpo.types import Sample


def geneval(folder: Path) -> None:
    bench = {"class": "bench", "count": 1}
    birds = {"class": "bird", "count": 2}
    rows = [
        {"tag": "single_object", "include": [bench], "prompt": "a photo of a bench"},
        {"tag": "counting", "include": [birds], "prompt": "a photo of two birds"},
        {"tag": "single_object", "include": [bench], "prompt": "a photo of one bench"},
    ]
    (folder / "evaluation_metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (folder / "generation_prompts.txt").write_text("a photo of a bench\n")


def drawbench(folder: Path) -> None:
    rows = '"A red, small car.",Colors\r\n"A sign that says ""Text"".",Text\r\n'
    (folder / "DrawBench.csv").write_text(f"Prompts,Category\r\n{rows}", newline="")


def partiprompts(folder: Path) -> None:
    rows = [
        "Prompt\tCategory\tChallenge\tNote",
        'the word "START\tIndoor Scenes\tWriting & Symbols\tnote',
        "bond\tAbstract\tBasic\t",
    ]
    (folder / "PartiPrompts.tsv").write_text("\n".join(rows) + "\n")


def hpdv2(folder: Path) -> None:
    for style in suites.STYLES:
        (folder / f"{style}.json").write_text(json.dumps([f"{style} of a cat", "a cat"]))


WRITE = {"geneval": geneval, "drawbench": drawbench, "partiprompts": partiprompts, "hpdv2": hpdv2}


def written(root: Path, name: str) -> Path:
    (root / name).mkdir(parents=True)
    WRITE[name](root / name)
    return root


def held_out(root: Path, name: str) -> Prompts:
    config = quickstart({"held_out": f"suite:{name}", "evaluation.suites": str(root)})
    assert suites.category(config) == suites.SUITES[name].category
    return prompts.lists(config)[1]


def test_there_is_a_file_of_each() -> None:
    assert suites.SUITES.keys() == WRITE.keys()


@pytest.mark.parametrize(
    ("name", "texts", "named"),
    [
        (
            "geneval",
            ["a photo of a bench", "a photo of two birds", "a photo of one bench"],
            ["single_object", "counting", "single_object"],
        ),
        ("drawbench", ["A red, small car.", 'A sign that says "Text".'], ["Colors", "Text"]),
        ("partiprompts", ['the word "START', "bond"], ["Indoor Scenes", "Abstract"]),
    ],
)
def test_records_and_their_categories(
    name: str, texts: list[str], named: list[str], tmp_path: Path
) -> None:
    found = held_out(written(tmp_path, name), name)
    key = suites.SUITES[name].category
    assert [sample.prompt for sample in found] == texts
    assert [categories.of(sample, key) for sample in found] == named


def test_what_rewards_go_by_is_in_the_metadata(tmp_path: Path) -> None:
    found = held_out(written(tmp_path, "geneval"), "geneval")
    assert found[1].metadata == {"tag": "counting", "include": [{"class": "bird", "count": 2}]}
    assert held_out(written(tmp_path, "partiprompts"), "partiprompts")[0].metadata == {
        "Category": "Indoor Scenes",
        "Challenge": "Writing & Symbols",
        "Note": "note",
    }


def test_styles_are_the_categories_of_hpdv2(tmp_path: Path) -> None:
    """A prompt of two styles is two records."""
    found = held_out(written(tmp_path, "hpdv2"), "hpdv2")
    wanted = [(text, style) for style in suites.STYLES for text in (f"{style} of a cat", "a cat")]
    assert [(one.prompt, one.metadata["style"]) for one in found] == wanted


@pytest.mark.parametrize("name", WRITE)
def test_a_file_that_is_missing_is_told_with_its_place_and_publisher(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        held_out(tmp_path, name)
    line = str(caught.value)
    assert line.startswith("held_out: expected ") and "\n" not in line
    assert f"in {tmp_path / name} (below evaluation.suites), got none: published by " in line
    assert suites.SUITES[name].publisher in line


def test_what_is_not_whole_or_another_format_is_refused(tmp_path: Path) -> None:
    root = written(tmp_path, "hpdv2")
    (root / "hpdv2" / "photo.json").unlink()
    with pytest.raises(UserError, match=r"got anime\.json, concept-art\.json, paintings\.json: "):
        held_out(root, "hpdv2")
    root = written(tmp_path / "two", "drawbench")
    (root / "drawbench" / "other.CSV").write_text("Prompts,Category\na,b\n")
    with pytest.raises(UserError, match=r"expected one \.csv file .* got DrawBench\.csv, other"):
        held_out(root, "drawbench")
    root = written(tmp_path / "bare", "geneval")
    (root / "geneval" / "evaluation_metadata.jsonl").write_text('{"prompt": "a", "kind": 1}\n')
    with pytest.raises(UserError, match=r"expected records with tag beside .*, got kind$"):
        held_out(root, "geneval")
    with pytest.raises(UserError, match=r"^held_out: expected suite:NAME with NAME one of genev"):
        prompts.read("held_out", "suite:genval")


def test_means_by_category() -> None:
    tags: list[object] = ["a", "b", "a", None, 3]
    samples = [Sample(prompt="x", metadata={} if one is None else {"tag": one}) for one in tags]
    scores = {"x/score": np.array([1, 2, 4, 8], np.float32)}  # of the first four
    before = categories.means(scores, samples, "tag")
    assert before == {
        "a": {"n": 2, "x/score": 2.5},
        "b": {"n": 1, "x/score": 2.0},
        "none": {"n": 1, "x/score": 8.0},
    }
    after = {"x/score": scores["x/score"] + 1, "new": scores["x/score"]}
    found = categories.both(scores, after, samples, "tag")
    assert found["a"] == {"n": 2, "x/score": {"before": 2.5, "after": 3.5, "difference": 1.0}}
    assert categories.of(samples[4], "tag") == "3"


def test_settings_stand_beside_numbers() -> None:
    keys = {"evaluation.steps": "7", "evaluation.width": "64", "model.true_cfg": "2.5"}
    found = settings(quickstart(keys | {"sampling.shift": "3"}))
    assert (found["steps"], found["height"], found["width"]) == (7, 32, 64)
    assert re.fullmatch(
        r"7 Euler steps, 32×64, guidance_scale [\d.]+, true_cfg_scale 2\.5, shift 3", words(found)
    )
    own = quickstart({"held_out": "split:8", "evaluation.category": "topic"})
    assert suites.category(own) == "topic" and suites.category(quickstart()) == ""
    assert settings(own)["prompts"] == "split:8"
