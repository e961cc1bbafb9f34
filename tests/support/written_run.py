"""A run folder that no run has written: every file that its page is made of, with figures by
hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from branchgrpo.report.contact_sheet import keep
from branchgrpo.report.looks import Looks, histogram
from branchgrpo.runs import provenance
from support.small_drivers import begun, config

PROMPTS = ["a <red> cat", "a dog & a bird", "two trees"]


def written_run(parent: Path, *, name: str = "flux", seed: int = 0, ended: str = "") -> Path:
    """60 iterations with checks every 20. ended: why; empty: it was cut off."""
    loaded = config(parent, name, seed, evaluation__rewards="[{name: colour}]")
    driver, _ = begun(loaded, ended=ended or "failed")
    folder, draw = driver.folder, np.random.default_rng(seed)
    records = [_record(number, draw) for number in range(61)]
    lines = [json.dumps(record) for record in records]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "samples").mkdir()
    pixels = draw.integers(0, 256, (3, 1, 32, 32, 3), np.uint8)
    keep(folder / "samples" / "before.npz", pixels, PROMPTS, np.zeros(3, np.float32))
    looks = Looks(folder)
    for number in (20, 40, 60):
        looks.held_out(number, pixels, PROMPTS, np.full(3, number / 100, np.float32))
        looks.leaves(number, pixels[:2], PROMPTS[:2], np.array([0.9, 0.1], np.float32))
        looks.add(number, _look(number, draw))
    if ended:
        _summarise(folder, ended)
    provenance.write(folder, 1, provenance.provenance(loaded, ["branchgrpo", "train"]))
    return folder


def _record(number: int, draw: np.random.Generator) -> dict[str, Any]:
    record: dict[str, Any] = {"iteration": number, "elapsed": 2.0 * number}
    if number % 20 == 0:
        record |= {"held_out/total": number / 100, "held_out/ocr/exact": number / 100}
        record["held_out/colour/ink"] = 1 - number / 100
    if number:
        record |= {"reward/total": number / 60 + float(draw.normal()) / 10, "time/iteration": 2.0}
        record |= {"reward/flat_groups": 0.75, "reward/spread": None, "spread/0": 0.1}
        record |= {f"time/{phase}": 0.25 for phase in ("encode", "grow", "score", "update")}
        record |= {"update/skipped_steps": float(number == 9), "prompts/truncated": 0.0}
        record |= {"alarm/norm": 1.0, "update/velocity_norm": 1.5}
    return record


def _look(number: int, draw: np.random.Generator) -> dict[str, Any]:
    leaf = {"prompt_index": 0, "tree": 0, "leaf": 1, "parts": {"ocr/exact": 1.0, "odd": None}}
    values = draw.normal(size=64).astype(np.float32)
    return {
        "held_out": {"total": {"mean": number / 100, "error": 0.05}},
        "prompts": 64,
        "alarms": {"alarm/hacking": "held-out total +0.2 ± 0.01, colour/ink −0.2 ± 0.01"},
        "rewards": histogram(values),
        "advantage": [{"step": step, **histogram(np.abs(values), 0.0)} for step in (0, 3)],
        "flat_groups": 0.75,
        "leaves": [leaf | {"prompt": prompt, "reward": 0.5} for prompt in PROMPTS[:2]],
    }


def _summarise(folder: Path, ended: str) -> None:
    row = {"before": 0.1, "after": 0.7, "difference": 0.6, "low": 0.5, "high": 0.7, "n": 64}
    summary = {
        "metric": "ocr/exact",
        "held_out": {"ocr/exact": row},
        "stopped_by": ended,
        "seconds": {"training": 120.0, "total": 130.0},
        "seconds_per_iteration": {"median": 2.0},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
