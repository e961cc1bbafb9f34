"""The paper's table beside ours: ratios by hand, of a finished comparison made up."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from support.small_trees import QUICKSTART

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tests" / "bench"))

import paper  # noqa: E402

from branchgrpo.config import load as configs  # noqa: E402


def rows() -> dict[str, Any]:
    found = {}
    for place, name in enumerate(paper.PAPER):
        found[name] = {
            "nfe_old": {"edges": 13.625, "forwards": 12.6875},
            "nfe_new": {"edges": 8.0, "forwards": 7.5},
            "seconds_per_iteration": {"median": 4.0 - place / 2},
            "seconds_ratio": (4.0 - place / 2) / 4.0,
            "gain": {"total": {"mean": 0.1 * (place + 1)}},
            "difference": {"total": {"mean": 0.1 * place, "low": -0.05, "high": 0.25}},
            "iterations": [40, 41],
        }
    found["dancegrpo"]["difference"] = None
    return found


def test_ratios_to_dancegrpo() -> None:
    found = {name: paper.row(name, rows()) for name in paper.PAPER}
    branch = found["branchgrpo"]
    assert branch["seconds"]["paper ratio"] == pytest.approx(493 / 698)
    assert branch["seconds"]["ratio"] == pytest.approx(2.5 / 4)
    # HPSv2.1 0.363 and 0.360, from 0.313
    assert branch["gain"]["paper ratio"] == pytest.approx(0.050 / 0.047)
    assert branch["gain"]["ratio"] == pytest.approx(4)
    assert found["dancegrpo"]["gain"]["ratio"] == found["dancegrpo"]["seconds"]["ratio"] == 1


def test_the_table_has_both_sides() -> None:
    lines = paper.markdown([paper.row(name, rows()) for name in paper.PAPER]).splitlines()
    assert len(lines) == 2 + len(paper.PAPER) and len({line.count("|") for line in lines}) == 1
    counts, ratios = "| 13.68/4.25 | 13.62/8 | 12.69/7.5 |", "| 0.21 | 0.25 | 1.06 | 7.00 |"
    difference = "| +0.003 | +0.600 [-0.050, +0.250] |"
    assert "| BranchGRPO-Mix " + counts + ratios[1:] + difference[1:] == lines[-1]
    assert lines[2].endswith("| 1.00 | 1.00 | – | – |")


def test_a_gain_below_zero_is_no_ratio() -> None:
    made = rows()
    made["dancegrpo"]["gain"]["total"]["mean"] = -0.01
    assert paper.row("branchgrpo", made)["gain"]["ratio"] is None


@pytest.mark.parametrize("name", paper.PAPER)
def test_every_method_of_it_is_there(name: str) -> None:
    path = paper.FILES / f"{name}.yaml"
    preset = str(path) if path.is_file() else name
    assert configs.load(QUICKSTART, {}, preset).sampling.steps == 20
