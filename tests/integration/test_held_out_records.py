"""Held-out records beside their scores, as a run keeps them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from support.small_trees import quickstart

from branchgrpo.report.saved import save
from branchgrpo.training.run_folder import RunFolder
from branchgrpo.types import Picture, Sample

SAMPLES = [
    Sample(prompt="a fox", id="7", negative_prompt="a wolf", metadata={"n": [1, "é"]}),
    Sample(
        prompt="水", images=(Picture("/a.png"), Picture("list.parquet: image[0] of row 2", b"x"))
    ),
    Sample(prompt="not measured"),
]


def test_each_line_is_a_record_with_its_scores(tmp_path: Path) -> None:
    folder = RunFolder(quickstart(), tmp_path, None, {})
    before = {"total": np.array([0.5, 0.25]), "ocr/edit": np.array([1.0, 2.0])}
    after = {name: values + 1 for name, values in before.items()}
    folder.keep("before", scores=before, diversity={}, pixels=None, samples=SAMPLES, title="")
    first = [json.loads(line) for line in (tmp_path / "held_out.jsonl").read_text().splitlines()]
    assert [row.keys() & {"before", "after"} for row in first] == [{"before"}] * 2
    folder.keep("after", scores=after, diversity={}, pixels=None, samples=SAMPLES, title="")
    text = (tmp_path / "held_out.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == [
        {
            "prompt": "a fox",
            "id": "7",
            "negative_prompt": "a wolf",
            "n": [1, "é"],
            "before": {"total": 0.5, "ocr/edit": 1.0},
            "after": {"total": 1.5, "ocr/edit": 2.0},
        },
        {
            "prompt": "水",
            "images": ["/a.png", "list.parquet: image[0] of row 2"],
            "before": {"total": 0.25, "ocr/edit": 2.0},
            "after": {"total": 1.25, "ocr/edit": 3.0},
        },
    ]
    assert "水" in text and "é" in text  # as people read it
    prompts = json.loads((tmp_path / "held_out.json").read_text())["prompts"]
    assert prompts == ["a fox", "水"]


def test_saved_pictures_have_a_list_of_what_they_are(tmp_path: Path) -> None:
    folder = RunFolder(quickstart({"evaluation.save": "2"}), tmp_path, None, {})
    scores = {"total": np.array([0.5, 0.25]), "ocr/edit": np.array([1.0, 2.0])}
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, 16, 24, 3), np.uint8)
    for row in (1, 0):  # in any order
        folder.save("before", row, pixels[row])
    folder.keep("before", scores=scores, diversity={}, pixels=None, samples=SAMPLES, title="")
    place = tmp_path / "samples" / "saved" / "before"
    assert {path.name for path in place.iterdir()} == {
        "000000.png",
        "000001.png",
        "samples.jsonl",
    }
    lines = [json.loads(line) for line in (place / "samples.jsonl").read_text().splitlines()]
    assert lines[0] == {
        "file": "000000.png",
        "prompt": "a fox",
        "id": "7",
        "negative_prompt": "a wolf",
        "n": [1, "é"],
        "seed": 0,
        "scores": {"total": 0.5, "ocr/edit": 1.0},
    }
    assert lines[1]["prompt"] == "水" and lines[1]["scores"]["ocr/edit"] == 2.0
    for row, line in enumerate(lines):
        assert (np.asarray(Image.open(place / line["file"])) == pixels[row, 0]).all()


def test_a_saved_video_has_every_frame_as_it_was(tmp_path: Path) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (9, 16, 24, 3), np.uint8)
    save(tmp_path, 3, frames)
    found = Image.open(tmp_path / "000003.webp")
    assert found.n_frames == 9
    for index, frame in enumerate(frames):
        found.seek(index)
        assert (np.asarray(found.convert("RGB")) == frame).all()
