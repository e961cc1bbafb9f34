"""A comparison of editing runs shows what was edited beside what each method drew."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from support.finished_comparison import finish
from support.small_comparison import compared

from branchgrpo.comparison import pictures
from branchgrpo.models.flux_kontext import FluxKontextModel
from branchgrpo.report import contact_sheet as sheet


def test_what_is_edited_is_a_column_of_its_own(tmp_path: Path) -> None:
    """Of the model's held-out records, whole in the shape of what was drawn."""
    rows = []
    for index in range(10):
        Image.new("RGB", (64, 32), (200, 100, 20 * index)).save(tmp_path / f"{index}.png")
        rows.append(json.dumps({"prompt": f"make it {index}", "image": f"{index}.png"}))
    (tmp_path / "held.jsonl").write_text("\n".join(rows))
    model = FluxKontextModel(path="embedded:tiny-flux", height=32, width=32)
    made = compared(tmp_path / "made", ["branchgrpo", "dancegrpo"], seeds=1)
    for name in made.methods:
        finish(made, method=name, seed=0, pace=1.0, checks=[0.1, 0.5])
    for key, config in made.configs.items():
        made.configs[key] = config.model_copy(
            update={"model": model, "held_out": str(tmp_path / "held.jsonl")}
        )
    for name in made.methods:
        pixels = np.full((10, 1, 32, 32, 3), (0, 200, 0), np.uint8)
        file = made.path(name, 0) / "samples" / "after.npz"
        sheet.keep(file, pixels, ["x"] * 10, np.zeros(10, np.float32))
    pictures.samples(made, made.folder / "compare-samples.png", "ocr/exact")
    with Image.open(made.folder / "compare-samples.png") as image:
        drawn = np.asarray(image.convert("RGB"))
    green = (drawn == (0, 200, 0)).all(axis=-1).any(axis=0).nonzero()[0]
    for index in range(sheet.KEPT):
        there = (drawn == (200, 100, 20 * index)).all(axis=-1)
        # 32 × 16 of 32 × 32 pixels, drawn four times as large
        assert there.sum() == 128 * 64 and there.any(axis=0).nonzero()[0][-1] < green[0]
