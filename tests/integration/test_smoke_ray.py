"""`branchgrpo train CONFIG --smoke` of every shipped config: one iteration of everything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from branchgrpo.config.shipped import names

ROOT = Path(__file__).parents[2]
OFTEN = "flux.1-dev-1node"


@pytest.mark.parametrize(
    "name",
    [name if name == OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in names()],
)
def test_a_shipped_config_passes(name: str, tmp_path: Path) -> None:
    environment = {
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "TMPDIR": str(tmp_path),
        "HPS_ROOT": str(tmp_path / "hps"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "branchgrpo", "train", name, "--smoke"],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=tmp_path,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.strip().splitlines()
    assert lines[0].startswith(f"smoke: everything is written to {tmp_path}/branchgrpo-smoke-")
    assert lines[-1].startswith("smoke: passed in ") and lines[-1].endswith(" s")
    (folder,) = tmp_path.glob("branchgrpo-smoke-*/runs/*")
    summary = json.loads((folder / "summary.json").read_text())
    assert "on_policy_deviation" in summary["gates"]
    assert list((folder / "checkpoints").iterdir()) and list((folder / "weights").iterdir())
    assert json.loads((folder / "held_out.json").read_text()).keys() == {"before", "after"}


@pytest.mark.slow
def test_one_that_fails_says_so(tmp_path: Path) -> None:
    """A scorer that nobody serves: of what is there, nothing is replaced."""
    keys = {"name": "remote", "url": "http://127.0.0.1:9", "retries": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "branchgrpo", "train", "--smoke"]
        + [f"--rewards.0.{key}={value}" for key, value in keys.items()],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
    )
    assert done.returncode != 0 and "127.0.0.1:9" in done.stderr
    assert "smoke: passed" not in done.stdout
