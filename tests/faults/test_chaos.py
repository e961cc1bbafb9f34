"""Twenty strokes on a run's processes, by seed: whatever dies or hangs, every iteration is that of
the undisturbed run."""

from __future__ import annotations

from pathlib import Path

import pytest
from chaos import play


@pytest.mark.slow
def test_a_run_among_random_kills_equals_the_undisturbed_one(tmp_path: Path) -> None:
    found = play(0, 20, tmp_path)
    assert found["differing"] == []
    assert len(found["strokes"]) == 20 and found["drivers"] > 1 and found["iterations"] == 23
    assert {name.split()[0] for name in found["by_role"]} >= {"rollout", "learner", "driver"}
