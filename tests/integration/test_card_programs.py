"""What is for machines with a card works without one: its tests check the CPU, its program measures
small shapes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*words: str, **environment: str) -> str:
    """What a Python program prints."""
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | environment,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_tests_of_a_card_can_be_collected() -> None:
    told = run("-m", "pytest", "tests/gpu", "--collect-only", BRANCHGRPO_TEST_DEVICE="cpu")
    assert "test_device_trees.py" in told and "error" not in told.lower()


@pytest.mark.slow
def test_the_tests_of_a_card_check_the_cpu() -> None:
    run("-m", "pytest", "tests/gpu", "-k", "not compiled", BRANCHGRPO_TEST_DEVICE="cpu")


@pytest.mark.slow
def test_every_part_of_the_program_runs_at_small_shapes(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    words = ["--device", "cpu", "--small", "--limit", "120", "--out", str(out)]
    run(str(ROOT / "tests" / "bench" / "gpu.py"), *words)
    parts = json.loads(out.read_text())["parts"]
    rows = [row for part in parts for row in part["rows"]]
    assert len(parts) == 15 and all(part["rows"] for part in parts)
    assert not [row for row in rows if "failed" in row or "out_of_memory" in row]
