"""What a run keeps of its looks on the way."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from branchgrpo.report import contact_sheet, looks
from branchgrpo.report.looks import Looks, histogram, standard_error

PIXELS = np.random.default_rng(0).integers(0, 256, (10, 1, 6, 8, 3), np.uint8)


def test_a_histogram_counts_every_value() -> None:
    found = histogram(np.array([0.0, 1.0, 1.0, 23.9, 24.0, np.nan], np.float32))
    assert found["edges"] == [float(edge) for edge in range(25)]
    assert found["counts"] == [1, 2, *[0] * 20, 0, 2]
    equal = histogram(np.full(3, 0.25, np.float32))
    assert sum(equal["counts"]) == 3 and equal["edges"][0] < 0.25 < equal["edges"][-1]
    from_zero = histogram(np.array([1.0, 2.4], np.float32), 0.0)
    assert from_zero["edges"][0] == 0 and from_zero["edges"][-1] == pytest.approx(2.4)
    assert sum(histogram(np.array([np.nan], np.float32))["counts"]) == 0


def test_the_error_is_that_of_a_mean() -> None:
    found = standard_error(np.array([1, 2, 3, 6], np.float32))
    assert found == {"mean": 3.0, "error": pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 3 / 4))}


def test_looks_are_read_as_they_were_kept(tmp_path: Path) -> None:
    kept = Looks(tmp_path)
    kept.rewind(-1)  # nothing was kept yet
    for iteration in (20, 40):
        kept.add(iteration, {"flat_groups": iteration / 100, "nothing": math.nan})
        kept.add(iteration, {"alarms": {}})
        captions = [f"prompt {number}" for number in range(10)]
        kept.held_out(iteration, PIXELS, captions, np.arange(10, dtype=np.float32))
        kept.leaves(iteration, PIXELS[:2], captions[:2], np.zeros(2, np.float32))
    with (tmp_path / looks.FILE).open("a") as file:
        file.write('{"iteration": 60, "flat')  # cut off
    wanted = [
        {"iteration": number, "flat_groups": number / 100, "nothing": None, "alarms": {}}
        for number in (20, 40)
    ]
    assert looks.read(tmp_path) == wanted
    pixels, captions, scores = contact_sheet.kept(tmp_path / "samples/way/000040.npz")
    assert np.array_equal(pixels, PIXELS[:8])
    assert captions[-1] == "prompt 7" and scores.tolist() == [*range(8)]
    kept.rewind(20)
    assert looks.read(tmp_path) == wanted[:1]
    assert json.loads((tmp_path / looks.FILE).read_text().splitlines()[0])["flat_groups"] == 0.2
    assert sorted(path.name for path in tmp_path.rglob("*.npz")) == [
        "000020.npz",
        "leaves-000020.npz",
    ]


def test_large_pictures_are_reduced_and_small_ones_stay() -> None:
    assert looks.reduced(PIXELS) is PIXELS
    large = np.zeros((2, 3, 300, 600, 3), np.uint8)
    large[:, :, :, 300:] = 200
    small = looks.reduced(large)
    assert small.shape == (2, 3, 128, 256, 3)
    assert (small[..., :120, :] <= 4).all() and (small[..., 136:, :] >= 196).all()
