"""Two learner ranks over gloo train like one rank on the whole batch: real trees of the embedded
model."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.small_batch import batch, config, outcome, two_ranks

from actors.learner import Learner
from branchgrpo.algo.tree import assemble
from branchgrpo.errors import GateError
from branchgrpo.learner import shard
from branchgrpo.models import weights as wire

TWICE = {
    "learner.optimiser_steps": "2",
    "gates.enabled": "false",
    "model.lora_rank": "4",
    "loss.kl_beta": "10.0",
    "loss.mean_beta": "10.0",
}


def rank_main(rank: int, address: str, folder: str) -> None:
    """One of two ranks: damaged credit, which must stop both; the update; two optimiser steps of
    adapters with KL to their base and their mean; NaN on the second rank."""
    arguments = pickle.loads((Path(folder) / "batch.pickle").read_bytes())
    learner = Learner(config(2), rank, list)
    learner.join(2, address)
    (request,) = arguments
    damaged = {
        key: values + np.float32(rank) * np.arange(4, dtype=np.float32)
        for key, values in request.scores.items()
    }
    found: dict[str, Any] = {"damaged": None}
    try:
        learner.update(replace(request, scores=damaged))
    except GateError as error:
        found["damaged"] = str(error)
    found["version"] = learner.version
    found |= outcome(learner, arguments)
    learner.configure(config(2, TWICE))
    found["twice"] = outcome(learner, arguments)
    learner.configure(config(2, TWICE))
    found["before"] = wire.digest_of(learner.model.trainable())
    for _, payload in arguments[0].segments:
        payload.latents[:] = np.nan if rank else payload.latents  # on the second rank alone
    found["poisoned"] = outcome(learner, arguments)
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one rank, and each of two ranks, made of the same trees."""
    folder = tmp_path_factory.mktemp("ddp")
    arguments = batch()
    (folder / "batch.pickle").write_bytes(pickle.dumps(arguments))
    learner = Learner(config(1), 0, list)
    learner.join(1, "")
    one = outcome(learner, arguments)
    learner.configure(config(1, TWICE))
    one["twice"] = outcome(learner, arguments)
    ranks = two_ranks(rank_main, folder)
    return {"one": one, "ranks": ranks, "arguments": arguments}


def test_the_batch_is_worth_the_test(runs: dict[str, Any]) -> None:
    (request,) = runs["arguments"]
    plan, segments, scores = request.plan, request.segments, request.scores
    trees = assemble(
        plan, [header for header, _ in segments], config(2).credit.leaf_rewards(scores)
    )
    first, second = shard.split(
        plan,
        credits=config(2).credit.assign(plan, trees, 0, scores),
        ranks=2,
        optimiser_steps=1,
        seed=0,
    )[0]
    assert len(first.parents) == len(second.parents) > config(2).learner.micro_batch
    assert (second.weight[-1] == 0).all()  # one parent is padding


def test_gradients_of_two_ranks_are_those_of_one(runs: dict[str, Any]) -> None:
    wanted = torch.cat([value.flatten() for value in runs["one"]["gradient"].values()])
    for rank in runs["ranks"]:
        found = torch.cat([value.flatten() for value in rank["gradient"].values()])
        assert float(wanted.norm()) > 0
        assert float((found - wanted).norm()) <= 1e-4 * float(wanted.norm())


def test_parameters_of_two_ranks_are_those_of_one(runs: dict[str, Any]) -> None:
    """Adam's first step is the gradient's sign nearly everywhere: only entries whose gradient is
    rounding noise may differ."""
    rate = 1e-3
    for name, wanted in runs["one"]["weights"].items():
        gradient = runs["one"]["gradient"][name].abs()
        clear = gradient > 1e-3 * gradient.max()
        for rank in runs["ranks"]:
            off = (rank["weights"][name] - wanted).abs()
            assert float(off.max()) <= 2.01 * rate
            assert float(off[clear].max() if clear.any() else 0) <= 1e-5, name


def test_both_ranks_hold_the_same_weights(runs: dict[str, Any]) -> None:
    first, second = runs["ranks"]
    assert first["digest"] == second["digest"]
    assert first["digest"] != runs["one"]["digest"] or all(
        torch.equal(runs["one"]["weights"][n], v) for n, v in first["weights"].items()
    )


def test_statistics_agree(runs: dict[str, Any]) -> None:
    first, second = (replace(rank["stats"], fetched_bytes=0) for rank in runs["ranks"])
    assert first == second
    one = runs["one"]["stats"]
    for field in (
        "version",
        "optimiser_steps",
        "skipped_steps",
        "forwards",
        "edges",
        "edges_stochastic",
        "weight_entropy",
        "advantage_abs",
    ):
        assert getattr(first, field) == getattr(one, field), field
    assert first.loss == pytest.approx(one.loss, abs=1e-5)
    assert first.velocity_norm == pytest.approx(one.velocity_norm, rel=1e-5)
    assert 0 < abs(one.velocity_norm - 1) < 0.1
    assert first.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-3)
    assert first.edges == 3 * (2 + 2 + 4 + 4)
    assert first.on_policy_deviation <= config(2).gates.on_policy_tolerance
    assert 0 < first.first_ratio_deviation <= first.on_policy_deviation  # of a part of its edges
    assert first.halved == 0 and first.version == 1


def test_different_credit_stops_both_ranks_before_they_train(runs: dict[str, Any]) -> None:
    for rank in runs["ranks"]:
        assert (
            rank["damaged"] is not None and "credit differ between learner ranks" in rank["damaged"]
        )
        assert "\n" not in rank["damaged"]
        assert rank["version"] == 0


def test_two_optimiser_steps_of_two_ranks_are_those_of_one(runs: dict[str, Any]) -> None:
    """Gradients are those of the second step, whose weights may differ by what Adam makes of
    rounding noise in the first."""
    one, ranks = runs["one"]["twice"], [rank["twice"] for rank in runs["ranks"]]
    assert ranks[0]["digest"] == ranks[1]["digest"]
    wanted = torch.cat([value.flatten() for value in one["gradient"].values()])
    for rank in ranks:
        assert rank["stats"].optimiser_steps == one["stats"].optimiser_steps == 2
        assert (
            rank["stats"].edges == one["stats"].edges
            and rank["stats"].forwards == one["stats"].forwards
        )
        found = torch.cat([value.flatten() for value in rank["gradient"].values()])
        assert float((found - wanted).norm()) <= 1e-2 * float(wanted.norm())
        off = torch.cat(
            [
                (rank["weights"][name] - value).abs().flatten()
                for name, value in one["weights"].items()
            ]
        )
        # Adam moves a weight by the rate of 1e-3, either way
        assert float(off.mean()) <= 1e-5 and float(off.max()) <= 4.02e-3


def test_nan_on_one_rank_makes_both_skip(runs: dict[str, Any]) -> None:
    for rank in runs["ranks"]:
        stats = rank["poisoned"]["stats"]
        assert (stats.skipped_steps, stats.optimiser_steps, stats.version) == (2, 0, 1)
        assert rank["poisoned"]["digest"] == rank["before"]
