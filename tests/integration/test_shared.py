"""Learner ranks that also grow trees give the trees, rewards and updates of ranks that don't: whole
runs in one process, and two ranks over gloo, with whole and with sharded weights."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.in_process import Service
from support.small_batch import PROMPTS, batch, config, outcome, two_ranks
from support.small_trees import quickstart
from support.training import Memory, run_of

from actors.learner import Learner
from actors.rollout import RolloutWorker
from actors.shared import SharedLearner
from branchgrpo.models import weights as wire
from branchgrpo.service import UpdateRequest
from branchgrpo.training.loop import train
from branchgrpo.types import SegmentRequest

SMALL = {
    "run.iterations": "3",
    "run.export": "none",
    "sampling.steps": "4",
    "method.splits": "[0, 1]",
    "method.leaves": "4",
    "rollout.threads": "1",
    "learner.threads": "1",
    "rollout.prompts": "2",
    "evaluation.prompts": "4",
    "evaluation.every": "1",
    "evaluation.steps": "2",
    "learner.warmup": "0",
    "learner.ema": "0.5",
    "learner.learning_rate": "0.001",
    "checkpoint.every": "0",
    "checkpoint.every_minutes": "0",
}
TIMES = ("time/", "service/")
TWO = {"learner.ema": "0.5", "async.max_staleness": "1"}  # the same trees are trained on twice
PARALLEL = ("ddp", "fsdp")


# one rank, in one process


@dataclass
class Whole:
    """What a run came to."""

    records: list[dict[str, float]]
    after: dict[str, Any]
    weights: str


def whole(folder: Path, **options: str) -> Whole:
    loaded, log = quickstart(SMALL | options), Memory()
    service = Service(loaded)
    run = run_of(loaded, service, folder, log=log)
    assert train(run).complete
    records = [
        {name: value for name, value in record.items() if not name.startswith(TIMES)}
        for record in log.records
    ]
    return Whole(records, run.after, wire.digest_of(service.learner.model.trainable()))


@pytest.mark.parametrize(
    "options",
    [{}, {"evaluation.weights": "ema"}, {"model.lora_rank": "2", "loss.kl_beta": "0.1"}],
    ids=["plain", "evaluated by the mean", "lora"],
)
def test_a_run_is_that_of_separate_roles(tmp_path: Path, options: dict[str, str]) -> None:
    separate = whole(tmp_path / "separate", **{"rollout.workers": "2"} | options)
    shared = {"cluster.layout": "shared", "rollout.workers": "1"}
    together = whole(tmp_path / "shared", **shared | options)
    assert separate.records and together.records == separate.records
    assert together.weights == separate.weights
    assert together.after.keys() == separate.after.keys()
    for name, scores in separate.after.items():
        np.testing.assert_array_equal(together.after[name], scores)


def test_a_rank_alone_sends_no_weights(tmp_path: Path) -> None:
    loaded = quickstart(SMALL | {"cluster.layout": "shared", "rollout.workers": "0"})
    service = Service(loaded)
    assert train(run_of(loaded, service, tmp_path)).complete
    assert {digest for *_, digest in service.published} == {""}
    grown = whole(tmp_path / "separate", **{"rollout.workers": "1"})
    assert wire.digest_of(service.learner.model.trainable()) == grown.weights


def test_between_update_and_show_nothing_is_grown() -> None:
    (request,) = batch()
    learner = SharedLearner(config(1, {"learner.ema": "0.5"}), 0, list)
    learner.join(1, "")
    before = {name: value.clone() for name, value in learner.model.trainable().items()}
    grow = inputs(request, 0, version=1)
    learner.update(request)
    with pytest.raises(RuntimeError, match=r"weights v-1: asked to grow with weights v1$"):
        learner.grow(*grow)
    updated = {name: value.clone() for name, value in learner.model.trainable().items()}
    assert any(value.grad is not None for value in learner.policy.masters)
    assert learner.show("policy") == 1 and learner.grow(*grow)
    assert all(value.grad is None for value in learner.policy.masters)
    # the mean of the second step of its decay, 2/11: (1 + 0)/(10 + 0) · before + 0.9 · updated
    assert learner.show("ema") == 1
    for name, value in learner.model.trainable().items():
        torch.testing.assert_close(value, 0.1 * before[name] + 0.9 * updated[name])
    # what is sent while the mean is shown is what was asked for
    _, update, *_ = learner.publish("policy")
    assert update.digest == wire.digest_of(updated)
    learner.show("policy")
    for name, value in learner.model.trainable().items():
        assert torch.equal(value, updated[name])


# two ranks


def inputs(request: UpdateRequest, index: int, version: int = 0) -> tuple[Any, ...]:
    """What `grow` got for this segment, roots apart."""
    header, _ = request.segments[index]
    asked = SegmentRequest(
        version=version, subtrees=header.subtrees, start=header.start, stop=header.stop
    )
    return request.plan, asked, *(request.conditioning[prompt] for prompt in asked.prompts)


def rank_main(rank: int, address: str, folder: str) -> None:
    """Rank 0 grows the trunk, rank 1 both halves, so that they make different numbers of forwards;
    then an update, and rank 1 alone grows with the mean of the weights."""
    arguments = pickle.loads((Path(folder) / "batch.pickle").read_bytes())
    (request,) = arguments
    frontier = frontier_of(request)
    found: dict[str, Any] = {}
    learner = None
    for parallel in PARALLEL:
        options = config(2, TWO | {"learner.parallel": parallel})
        if learner is None:
            learner = SharedLearner(options, rank, list)
            learner.join(2, address)
        else:
            learner.configure(options)
        found[f"{parallel}/grown"] = (
            [learner.grow(*inputs(request, 0))]
            if rank == 0
            else [
                learner.grow(*inputs(request, 1), *frontier[:3]),
                learner.grow(*inputs(request, 2), *frontier[3:]),
            ]
        )
        found[parallel] = outcome(learner, arguments)
        learner.show("ema")
        if rank:
            found[f"{parallel}/mean"] = learner.grow(*inputs(request, 0, version=1))
        learner.show("policy")
        found[f"{parallel}/again"] = outcome_again(learner, arguments)
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


def outcome_again(learner: Learner, arguments: tuple[Any, ...]) -> float:
    """Norm of the next update's gradient."""
    return learner.update(*arguments).gradient_norm


def frontier_of(request: Any) -> list[Any]:
    """Latents of the level where the trees were cut: they are children of the trunk's random
    edges."""
    payload = request.segments[0][1]
    rows = {
        (subtree, node): payload.latents[row]
        for row, (subtree, node) in enumerate(
            zip(payload.subtree.tolist(), payload.node.tolist(), strict=True)
        )
    }
    return [rows[tree, node] for tree in range(len(PROMPTS)) for node in (1, 2)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a rollout worker grew, one learner rank made of it, and each of two shared ranks."""
    folder = tmp_path_factory.mktemp("shared")
    arguments = batch()
    (folder / "batch.pickle").write_bytes(pickle.dumps(arguments))
    (request,) = arguments
    learner = Learner(config(1, TWO), 0, list)
    learner.join(1, "")
    one = outcome(learner, arguments)
    worker = RolloutWorker(config(1), 0)
    worker.ready()
    _, update, *chunks = learner.publish("ema")
    worker.load_weights(update, *chunks)
    mean = worker.grow(*inputs(request, 0, version=1))
    again = outcome_again(learner, arguments)
    return {
        "arguments": arguments,
        "one": one,
        "mean": mean,
        "again": again,
        "ranks": two_ranks(rank_main, folder),
    }


@pytest.mark.parametrize("parallel", PARALLEL)
def test_ranks_grow_what_a_worker_grows(runs: dict[str, Any], parallel: str) -> None:
    (request,) = runs["arguments"]
    grown = [one for rank in runs["ranks"] for one in rank[f"{parallel}/grown"]]
    assert len(grown) == len(request.segments)
    for (header, payload), found in zip(request.segments, grown, strict=True):
        np.testing.assert_allclose(found[1].latents, payload.latents, atol=1e-6)
        np.testing.assert_array_equal(found[1].node, payload.node)
        np.testing.assert_allclose(found[0].log_prob, header.log_prob, atol=1e-6)


@pytest.mark.parametrize("parallel", PARALLEL)
def test_the_update_is_that_of_one_rank(runs: dict[str, Any], parallel: str) -> None:
    wanted = torch.cat([value.flatten() for value in runs["one"]["gradient"].values()])
    for rank in runs["ranks"]:
        found = torch.cat([value.flatten() for value in rank[parallel]["gradient"].values()])
        assert float((found - wanted).norm()) <= 1e-4 * float(wanted.norm()) > 0
        assert rank[parallel]["stats"].edges == runs["one"]["stats"].edges
        # the weights that were shown meanwhile left no trace
        assert rank[f"{parallel}/again"] == pytest.approx(runs["again"], rel=1e-3)


@pytest.mark.parametrize("parallel", PARALLEL)
def test_one_rank_grows_with_the_mean_of_the_weights(runs: dict[str, Any], parallel: str) -> None:
    _, rank = runs["ranks"]
    for found, wanted in zip(rank[f"{parallel}/mean"][1:], runs["mean"][1:], strict=True):
        latents = [getattr(one, "latents", one) for one in (found, wanted)]
        np.testing.assert_allclose(latents[0], latents[1], atol=2e-4)
    first = runs["arguments"][0].segments[0][1].latents
    assert np.abs(rank[f"{parallel}/mean"][1].latents - first).max() > 1e-3
