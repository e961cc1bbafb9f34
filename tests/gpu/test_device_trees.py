"""Trees, updates and whole iterations are the same on any device and for any split into batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.in_process import Service
from support.on_device import PROMPTS, TREES, Small, ratio_off
from support.records import records
from support.small_batch import batch, config, outcome
from support.small_loop import config as small_run
from support.small_trees import plan_of
from support.training import Memory, run_of

from actors.learner import Learner
from branchgrpo.rollout.sampler import Sampler, Segment
from branchgrpo.training.loop import update
from branchgrpo.training.state import TrainState

PLAN = plan_of(2, 2, 1, 2, 1)


def grown(model: object, max_batch: int) -> tuple[torch.Tensor, Segment]:
    """(roots, two trees of 8 leaves)."""
    sampler = Sampler(model, 5, torch.float32, max_batch)  # type: ignore[arg-type]
    roots = sampler.roots(PLAN, TREES)
    conditioning = model.encode(records(PROMPTS))  # type: ignore[attr-defined]
    return roots, sampler.grow(
        PLAN, subtrees=TREES, x=roots, start=0, stop=PLAN.steps, conditioning=conditioning
    )


@pytest.mark.parametrize("max_batch", [1, 3, 64])
def test_a_tree_is_the_same(families: dict[str, Small], device: str, max_batch: int) -> None:
    here, there = (families["flux"].build(place, lora_rank=4) for place in ("cpu", device))
    (roots, wanted), (others, found) = grown(here, 64), grown(there, max_batch)
    assert torch.equal(roots, others.cpu())  # noise is drawn by names, and exactly
    assert np.array_equal(found.kept_node, wanted.kept_node)
    assert np.array_equal(found.kept_subtree, wanted.kept_subtree)
    assert found.forwards == wanted.forwards
    torch.testing.assert_close(found.kept.cpu(), wanted.kept, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.frontier.cpu(), wanted.frontier, rtol=0, atol=1e-3)
    np.testing.assert_allclose(found.log_prob, wanted.log_prob, rtol=0, atol=1e-3)


def test_an_update_is_the_same(roles: dict[str, str]) -> None:
    """The same trees on a learner of the CPU and one of the device; what only rounding decides may
    differ."""
    arguments = batch()
    found = []
    for place in ({}, roles | {"gates.enabled": "false"}):
        learner = Learner(config(1, place), 0, list)
        learner.join(1, "")
        found.append(outcome(learner, arguments))
    here, there = found
    wanted, got = (
        torch.cat([value.cpu().float().flatten() for value in one["gradient"].values()])
        for one in found
    )
    assert float(wanted.norm()) > 0
    assert float((got - wanted).norm()) <= 1e-2 * float(wanted.norm())
    assert there["stats"].edges == here["stats"].edges
    assert there["stats"].forwards == here["stats"].forwards
    assert there["stats"].gradient_norm == pytest.approx(here["stats"].gradient_norm, rel=1e-2)
    rate = 1e-3
    for name, value in here["weights"].items():
        assert float((there["weights"][name].cpu() - value).abs().max()) <= 2.01 * rate, name


def test_iterations_of_the_quick_start(roles: dict[str, str], device: str, tmp_path: Path) -> None:
    """The real loop in one process: what the first iteration shows, and that the third is sound."""
    records = []
    for place, options in (("cpu", {}), ("device", roles | {"gates.on_policy_tolerance": "1e-3"})):
        loaded = small_run(**options)
        run = run_of(loaded, Service(loaded), tmp_path / place, log=Memory())
        state, made = TrainState(), []
        run.begin(state)
        for _ in range(3):
            update(run, state)
            made.append(dict(state.record))
        records.append(made)
    here, there = (made[0] for made in records)
    for name in ("tree/forwards", "tree/edges", "update/edges", "update/forwards"):
        assert there[name] == here[name], name
    assert there["reward/total"] == pytest.approx(here["reward/total"], abs=0.02)
    assert all(one["update/first_ratio_deviation"] <= ratio_off(device) for one in records[1])
    assert there["update/gradient_norm"] == pytest.approx(here["update/gradient_norm"], rel=0.05)
    assert all(np.isfinite(one["update/loss"]) for one in records[1])
    assert records[1][-1]["update/version"] == 3
