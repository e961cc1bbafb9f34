"""KL of edges to an exponential mean of the weights, against a slow float64 reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.small_adapter import SmallAdapter
from test_policy_update import clipped_loss, mean_of, nudge, slow_gradient
from test_update import PLAN, Case, close
from torch import Tensor

from branchgrpo.algo.loss.dppo import DivergenceLoss
from branchgrpo.algo.loss.edges import EdgeLoss
from branchgrpo.algo.loss.guard import GuardLoss
from branchgrpo.learner.policy import Tally
from branchgrpo.learner.training import EdgeTraining, Task
from branchgrpo.types import LearnerShard

BETA = 3.0


def moved(**overrides: str) -> tuple[Case, SmallAdapter]:
    """A policy, its mean and the base, all apart; and the mean as a model in float64."""
    case = Case(**{"loss.mean_beta": str(BETA)} | overrides)
    assert case.policy.second is not None
    case.model.freeze_base()
    nudge(case.model, 0.05)
    case.policy.second.move(0.0)
    mean = case.model.double()
    nudge(case.model, -0.02)
    return case, mean


def divergence(
    case: Case, other: SmallAdapter, mean: Tensor, std: float, at: tuple[int, int]
) -> Tensor:
    """Of the edge `at` (tree, node), written out."""
    with torch.no_grad():
        held, _ = mean_of(case, other, *at)
    return (mean - held).square().mean() / (2 * std**2)


def alone(case: Case, held: SmallAdapter, found: list[float]) -> Tensor:
    """The gradient of the distance from the mean; `found` gets each edge's."""

    def penalty(tree: int, node: int, mean: Tensor, std: float) -> Tensor:
        loss = BETA * divergence(case, held, mean, std, (tree, node))
        found.append(loss.item())
        return loss

    return slow_gradient(case, penalty)


def test_value_and_gradient_are_those_of_the_distance_from_the_mean() -> None:
    case, held = moved()
    case.credits = [
        replace(credit, advantage=np.zeros_like(credit.advantage)) for credit in case.credits
    ]
    found: list[float] = []
    wanted, tally = alone(case, held, found), Tally()
    assert case.config.loss.every  # what has advantage 0 is computed for it
    case.policy.step(PLAN, case.batches(case.shards(every=True)[0], 3), tally)
    assert close(case.gradient(), wanted) and float(wanted.norm()) > 1e-3
    assert tally.loss == pytest.approx(np.mean(found), rel=1e-3)
    assert tally.edges == len(found) and tally.kl == 0.0  # which is to the base


def test_it_adds_to_the_surrogate_and_to_the_distance_from_the_base() -> None:
    case, held = moved(**{"loss.kl_beta": "0.7", "loss.clip_range": "0.05"})
    base = SmallAdapter()
    base.denoiser = case.model.base.double()  # type: ignore[union-attr]
    surrogate = clipped_loss(case, 0.05)

    def all_three(tree: int, node: int, mean: Tensor, std: float) -> Tensor:
        return (
            surrogate(tree, node, mean, std)
            + 0.7 * divergence(case, base, mean, std, (tree, node))
            + BETA * divergence(case, held, mean, std, (tree, node))
        )

    wanted = slow_gradient(case, all_three)
    case.model.base.float()  # type: ignore[union-attr]
    case.policy.step(PLAN, case.batches(case.shards(every=True)[0]), Tally())
    assert close(case.gradient(), wanted)


@pytest.mark.parametrize("kind", [GuardLoss, DivergenceLoss])
def test_other_losses_of_edges_have_it_too(kind: type[EdgeLoss]) -> None:
    gradients = []
    for beta in (0.0, BETA):
        case, held = moved(**{"learner.old": "recompute"})
        case.policy.config = case.config.model_copy(update={"loss": kind(mean_beta=beta)})
        penalty = alone(case, held, [])
        case.policy.step(PLAN, case.batches(case.shards(every=True)[0], 4), Tally())
        gradients.append(case.gradient())
    assert close(gradients[1] - gradients[0], penalty, 1e-3)


def test_a_policy_that_is_its_own_mean_feels_nothing() -> None:
    plain, held = Case(), Case(**{"loss.mean_beta": "100"})
    for case in (plain, held):
        case.policy.step(PLAN, case.batches(case.shards()[0]), Tally())
    assert close(held.gradient(), plain.gradient(), 1e-6)


@pytest.mark.parametrize(("size", "ranks"), [(1, 1), (4, 1), (64, 2), (3, 5)])
def test_neither_micro_batches_nor_ranks_change_the_gradient(size: int, ranks: int) -> None:
    whole, parts = moved()[0], moved()[0]
    whole.policy.step(PLAN, whole.batches(whole.shards(every=True)[0]), Tally())
    together = LearnerShard(
        *(
            np.concatenate([getattr(part, name) for part in parts.shards(ranks, every=True)])
            for name in ("parents", "edges", "advantage", "weight")
        )
    )
    parts.policy.step(PLAN, parts.batches(together, size), Tally())
    assert close(parts.gradient(), whole.gradient(), 1e-5)


def test_the_mean_follows_after_each_iteration_and_its_weights_have_no_gradient() -> None:
    case = Case(
        **{
            "loss.mean_beta": "1",
            "loss.mean": "{start: 0.25, flat: 1, rate: 0.1}",
            "learner.learning_rate": "0.01",
        }
    )
    training, second = EdgeTraining(case.config, case.policy), case.policy.second
    assert second is not None
    wanted = {name: value.clone() for name, value in second.tensors.items()}
    for iteration, decay in enumerate((0.25, 0.35, 0.45, 0.5, 0.5)):
        task = Task(plan=PLAN, iteration=iteration, trees=case.trees, credits=case.credits)
        training.step(task, case.batches(case.shards(every=True)[0]), Tally())
        training.end(task)
        for name, value in case.policy.named_masters().items():
            wanted[name] = decay * wanted[name] + (1 - decay) * value.detach()
            assert torch.allclose(second.tensors[name], wanted[name], atol=1e-6)
            assert not torch.equal(second.tensors[name], value)


def test_without_it_there_is_no_second_set() -> None:
    assert Case().policy.second is None and not Case().config.loss.every
    assert Case().config.loss.decay(1) == Case().config.loss.decay(999) == 0.9
