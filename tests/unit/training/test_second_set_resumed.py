"""A run whose loss has a second set of weights goes on from a checkpoint as if it had not been cut
off, publishes what it samples with, and checks and exports what it trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.in_process import Service
from support.small_loop import SMALL
from support.small_trees import quickstart
from support.training import Memory, run_of

from actors.shared import SharedLearner
from branchgrpo.checkpoint.store import Store
from branchgrpo.config.schema import Config
from branchgrpo.learner import norm_reference
from branchgrpo.models import weights as wire
from branchgrpo.training.loop import train

pytestmark = pytest.mark.networks

LOSSES = {
    "nft": "{name: nft, old: {start: 0.5}}",
    "awm": "{name: awm, mean: {start: 0.5}}",
    "edges": "{name: clipped, mean_beta: 1, mean: {start: 0.5}}",
}


LAYOUTS = [("nft", "separate"), ("nft", "shared"), ("awm", "shared"), ("edges", "separate")]


def config(loss: str, **options: str) -> Config:
    small = {key: value for key, value in SMALL.items() if not key.startswith("method.")}
    method = {
        "method": "{name: chains, chains: 2, root: private, stochastic: none}",
        "advantage": "{name: group}",
        "sampling.steps": "3",
        "evaluation.prompts": "2",
        "evaluation.steps": "2",
    }
    if loss == "edges":
        method |= {"method": "{name: chains, chains: 2}"}
    return quickstart(small | method | {"loss": LOSSES.get(loss, loss)} | options)


def state(service: Service) -> tuple[str, ...]:
    """Digests of all weights that a learner holds."""
    learner, policy = service.learner, service.learner.policy
    if isinstance(learner, SharedLearner):
        learner.show("policy")
    return tuple(wire.digest_of(policy.named(which)) for which in ("policy", "ema", "second"))


def told(log: Memory) -> list[dict[str, float]]:
    return [
        {
            name: value
            for name, value in one.items()
            if not name.startswith(("time/", "service/", "checkpoint/")) and value == value
        }
        for one in log.updates
    ]


@pytest.mark.parametrize(("loss", "layout"), LAYOUTS)
def test_a_run_that_was_cut_off_comes_out_the_same(
    loss: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norm_reference, "EVERY", 1)
    keys = {"cluster.layout": layout} | ({"rollout.workers": "0"} if layout == "shared" else {})
    whole, record = Service(config(loss, **keys)), Memory()
    train(run_of(config(loss, **keys), whole, tmp_path / "whole", log=record))
    cut, first = Service(config(loss, **keys)), Memory()
    halves = iter([False, True])
    train(
        run_of(
            config(loss, **keys),
            cut,
            tmp_path / "cut",
            log=first,
            interrupted=lambda: next(halves),
        )
    )
    again, second = Service(config(loss, **keys)), Memory()
    train(run_of(config(loss, **keys), again, tmp_path / "cut", log=second, resumed=True))
    assert len(told(first)) == len(told(second)) == 2
    assert told(first) + told(second) == told(record)
    norms = [one["update/velocity_norm"] for one in told(record)]
    assert len(set(norms)) == 4 and all(0.5 < norm < 2 and norm != 1 for norm in norms)
    assert state(again) == state(whole) != state(cut)
    assert len(set(state(whole))) == 3  # policy, mean, and the second set


def test_rollouts_get_the_second_set_and_checks_the_policy(tmp_path: Path) -> None:
    loaded = config("nft", **{"run.iterations": "2", "evaluation.every": "1"})
    service = Service(loaded)
    train(run_of(loaded, service, tmp_path))
    step = [("second", 1), ("policy", 1), ("second", 1)]  # an update; a check, and back
    assert [found[:2] for found in service.published] == [
        *step,
        *[(name, 2) for name, _ in step],
    ]
    policy = service.learner.policy
    saved = Store(str(tmp_path), 2).newest()
    assert saved is not None and policy.second is not None
    found = saved.tensors("second.safetensors")
    assert found.keys() == policy.second.tensors.keys()
    assert all(torch.equal(found[name], one) for name, one in policy.second.tensors.items())
    (worker,) = service.rollout_pool.workers
    held = worker.model.trainable()
    assert all(torch.equal(held[name], one) for name, one in policy.second.tensors.items())
    assert not all(torch.equal(held[name], one) for name, one in policy.named("policy").items())


def test_a_loss_with_a_second_set_goes_on_from_a_run_without_one(tmp_path: Path) -> None:
    """It begins at the weights that are trained."""
    plain = config("{name: awm, mean_beta: 0}", **{"run.iterations": "2"})
    first = Service(plain)
    train(run_of(plain, first, tmp_path))
    service = Service(config("nft"))
    run = run_of(config("nft"), service, tmp_path, resumed=True)
    service.learner.restore(str(tmp_path))
    policy = service.learner.policy
    assert policy.second is not None and run.config.grown_with == "second"
    for name, value in first.learner.policy.named_masters().items():
        assert torch.equal(policy.second.tensors[name], value)
