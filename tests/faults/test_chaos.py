"""Strokes on a run's processes, by seed: whatever dies or hangs, every iteration is that of the
undisturbed run."""

from __future__ import annotations

from pathlib import Path

import pytest
from chaos import play


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "seed", "strokes"), [("separate", 0, 10), ("shared", 0, 4)])
def test_a_run_among_random_kills_equals_the_undisturbed_one(
    tmp_path: Path, layout: str, seed: int, strokes: int
) -> None:
    found = play(seed, strokes, tmp_path, layout)
    assert found["differing"] == []
    assert len(found["strokes"]) == strokes and found["drivers"] > 1
    assert found["iterations"] == strokes + 3
    assert {name.split()[0] for name in found["by_role"]} >= {"rollout", "learner", "driver"}
