"""What the doctor's checks are given: configs, and facts of a machine; and what they find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from branchgrpo.config import load as configs
from branchgrpo.config.schema import Config
from cluster.doctor.finding import Finding

ROOT = Path(__file__).parents[2]
GB = 1 << 30


def quickstart(**overrides: str) -> Config:
    return configs.load(
        ROOT / "configs" / "quickstart.yaml",
        {key.replace("__", "."): value for key, value in overrides.items()},
    )


def facts(**changed: Any) -> dict[str, Any]:
    """Of one machine."""
    code = {"branchgrpo": "aaaa", "actors": "bbbb", "cluster": "cccc"}
    return {
        "python": "3.11.7",
        "packages": {"ray": "2.60.0", "torch": "2.15.0"},
        "code": code,
        "shm": [8 * GB, 7 * GB],
        "files": {},
        "cuda": None,
    } | changed


def state(finding: Finding, *words: str) -> str:
    """Its state; the words must be in its line or its advice, which are one line each."""
    assert "\n" not in finding.text + finding.advice
    for word in words:
        assert word in f"{finding.text} → {finding.advice}"
    return finding.state
