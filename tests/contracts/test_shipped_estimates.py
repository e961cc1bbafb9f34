"""Every shipped config that needs GPUs fits the ones it names, in the seconds that its comment and
docs/gpus.md tell."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from branchgrpo.config import load
from branchgrpo.config.shipped import config_file, names
from branchgrpo.estimate.cards import CARDS
from branchgrpo.estimate.estimate import Estimate, of_model
from branchgrpo.estimate.model import ModelNeeds, model_needs

pytestmark = pytest.mark.slow  # a minute: every model is counted

LARGE = [name for name in names() if name != "quickstart"]
PAGE = Path(__file__).parents[2] / "docs" / "gpus.md"
ROW = re.compile(r"^\| `([\w./-]+)` \| (\d+) \| ([\d.]+) \| ([\d.]+) \| (\d+) \| (\d+) % \|$", re.M)


@pytest.fixture(scope="module")
def estimates() -> dict[str, Estimate]:
    """Of each, on the H100 that all of them name."""
    counted: dict[str, ModelNeeds | None] = {}
    found = {}
    for name in LARGE:
        config = load.load(config_file(name))
        model = config.model.model_dump_json()
        if model not in counted:
            counted[model] = model_needs(config)
        found[name] = of_model(config, counted[model], CARDS["h100"])
    return found


@pytest.mark.parametrize("name", LARGE)
def test_it_fits(name: str, estimates: dict[str, Estimate]) -> None:
    found = estimates[name]
    assert not found.problems and not found.notes and not found.unknown
    assert found.times and found.model


@pytest.mark.parametrize("name", LARGE)
def test_seconds_of_its_comment(name: str, estimates: dict[str, Estimate]) -> None:
    text = config_file(name).read_text(encoding="utf-8")
    (told,) = re.findall(r"; (\d+) s on H100s, computed, not measured", text)
    found = estimates[name].times
    assert found and int(told) == pytest.approx(found.iteration, abs=1, rel=0.01)


def test_the_page_lists_all(estimates: dict[str, Estimate]) -> None:
    rows = ROW.findall(PAGE.read_text(encoding="utf-8"))
    assert [name for name, *_ in rows] == LARGE
    for name, gpus, *sizes, seconds, idle in rows:
        found = estimates[name]
        assert found.times and int(gpus) == found.cards
        (learner,) = [need for need in found.needs if need.role == "learner"]
        largest = max(need.peak for need in found.needs)
        for told, size in zip(sizes, (learner.peak, largest), strict=True):
            assert float(told) == pytest.approx(size / 1e9, abs=0.1, rel=0.01)
        assert int(seconds) == pytest.approx(found.times.iteration, abs=1, rel=0.01)
        assert int(idle) == pytest.approx(100 * found.times.idle, abs=1)


def test_what_gradient_checkpointing_spares(estimates: dict[str, Estimate]) -> None:
    """The comment beside the key, by the learner's largest turn."""
    name = "flux.1-dev-1node"
    text = config_file(name).read_text(encoding="utf-8")
    (told,) = re.findall(r"# (\d+) GB a learner instead of (\d+)", text)
    plain = load.load(config_file(name), {"model.gradient_checkpointing": "false"})
    for size, found in zip(
        told, (estimates[name], of_model(plain, model_needs(plain))), strict=True
    ):
        (learner,) = [need for need in found.needs if need.role == "learner"]
        assert int(size) == round(learner.peak / 1e9)
