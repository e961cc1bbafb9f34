"""Held-out records beside their scores, as a run keeps them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from support.small_trees import quickstart

from branchgrpo.training.carry_out import RunFolder
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
