"""The figures of an iteration: names as docs/run-folder.md lists them, and those of its trees."""

from __future__ import annotations

from dataclasses import fields
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from support.small_trees import plan_of, quickstart

from branchgrpo.report.metrics import of_iteration
from branchgrpo.rollout.batch import RolloutBatch, Scouted
from branchgrpo.types import StepStats

PAGE = Path(__file__).parents[3] / "docs" / "run-folder.md"


def figures() -> dict[str, float]:
    """Two prompts with a tree of four leaves each, the second with a spread of 0.001."""
    leaves = np.array([[0.0, 0.2, 0.6, 0.8], [0.5, 0.502, 0.5, 0.502]], np.float32)
    trees = {(prompt, 0): rewards for prompt, rewards in enumerate(leaves)}
    batch = RolloutBatch(
        scores={name: rewards[None] for name, rewards in trees.items()},
        rewards=trees,
        parts={"ocr/exact": trees},
        seconds={"grow": 1.0, "scout": 0.5},
        scouted=Scouted(reward=0.375, forwards=12, halved=1, agreement=0.5),
    )
    stats = StepStats(**{field.name: 1 for field in fields(StepStats)})
    credit = quickstart({"rewards": "[{name: jpeg}]"}).credit
    return of_iteration(plan_of(2, 2, 1), batch, stats, credit=credit, driver_bytes=7)


def test_every_figure_is_on_its_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    names = [*figures()]
    assert len(names) > 25
    lacking = [
        name
        for name in names
        if f"`{name}`" not in text and f"`{name.partition('/')[2]}`" not in text
    ]
    assert lacking == ["reward/ocr/exact"] and "`reward/NAME/SCORE`" in text


def test_figures_of_trees() -> None:
    found = figures()
    assert found["reward/total"] == pytest.approx(0.4505)
    assert found["reward/flat_groups"] == 0.5 and found["driver/bytes"] == 7
    # nothing but scouts was grown
    assert found["tree/forwards"] == found["tree/scout_forwards"] == 12
    assert found["tree/batches_halved"] == 1 and found["time/scout"] == 0.5
    assert (found["scout/total"], found["scout/agreement"]) == (0.375, 0.5)
    # means of siblings: 0.1 and 0.7, twice 0.501; below them 0.2 apart, and 0.002
    assert found["spread/0"] == pytest.approx(0.6 / sqrt(2) / 2, rel=1e-4)
    assert found["spread/1"] == pytest.approx((0.2 + 0.002) / sqrt(2) / 2, rel=1e-4)
    # of one prompt: γ_0 = (36 + 64 + 16 + 36) · 0.01 / 8 and γ_1 = 0.02, and of the other next to
    # nothing, so ρ_1 is nearly 17/19 and two pairs of four leaves have it
    assert found["tree/effective_samples"] == pytest.approx(4 / (1 + 17 / 19), rel=1e-3)
