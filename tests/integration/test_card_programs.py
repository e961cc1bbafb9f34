"""What is for machines with a card works without one: its tests check the CPU, its program measures
small shapes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    # of actors on a Ray, which others here have too, one layout
    left = "not compiled and not test_two_iterations[separate]"
    run("-m", "pytest", "tests/gpu", "-k", left, BRANCHGRPO_TEST_DEVICE="cpu")


TOGETHER = """
import json, sys, time
from importlib import import_module
from pathlib import Path
from gpu import PARTS
from gpu_parts.card import Setting
for name, (place, _) in PARTS.items():
    module, _, function = place.partition(":")
    folder = Path(sys.argv[1], name)
    folder.mkdir()
    setting = Setting(device="cpu", small=True, folder=folder, ends=time.monotonic() + 600)
    rows = list(getattr(import_module(f"gpu_parts.{module}"), function)(setting))
    print("@", json.dumps([name, rows]), flush=True)
"""


def sound(rows: list[dict[str, Any]]) -> bool:
    """Are there some, and did nothing fail?"""
    return bool(rows) and not any("failed" in row or "out_of_memory" in row for row in rows)


@pytest.mark.slow
def test_every_part_of_the_program_runs_at_small_shapes(tmp_path: Path) -> None:
    """In one process, which imports torch once."""
    tests = ROOT / "tests"
    path = os.pathsep.join(map(str, (ROOT, tests, tests / "bench")))
    told = run("-c", TOGETHER, str(tmp_path), PYTHONPATH=path)
    parts = [json.loads(line[2:]) for line in told.splitlines() if line.startswith("@ ")]
    assert len(parts) == 15 and all(sound(rows) for _, rows in parts), parts


@pytest.mark.slow
def test_the_program_runs_parts_in_processes_of_their_own(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    words = ["--device", "cpu", "--small", "--limit", "300", "--out", str(out), "--parts", "6"]
    run(str(ROOT / "tests" / "bench" / "gpu.py"), *words)
    (part,) = json.loads(out.read_text())["parts"]
    assert part["part"] == "6" and sound(part["rows"])
