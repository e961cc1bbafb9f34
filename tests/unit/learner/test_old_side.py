"""The ratio's old side: the rollout workers' log-probs, or what the learner's own weights give
before the iteration's first step; against slow float64 references."""

from __future__ import annotations

import pytest
import torch
from support.small_adapter import SmallAdapter
from test_policy_update import kept, mean_of, slow_gradient
from test_update import CLIP, PLAN, Case, close, poisoned
from torch import Tensor

from branchgrpo.algo.tree import topology
from branchgrpo.learner.policy import Tally

RECOMPUTE = {"learner.old": "recompute"}
MOVING = {"learner.learning_rate": "0.003", "loss.clip_range": "0.002"}


def log_prob(case: Case, model: SmallAdapter, tree: int, node: int) -> Tensor:
    mean, std = mean_of(case, model, tree, node)
    return torch.distributions.Normal(mean, std).log_prob(case.latents[tree, node].double()).mean()


def test_with_one_step_the_ratio_is_1_and_has_its_gradient() -> None:
    case, tally = Case(**RECOMPUTE), Tally()

    def loss(tree: int, node: int, mean: Tensor, std: float) -> Tensor:
        y = case.latents[tree, node].double()
        new = torch.distributions.Normal(mean, std).log_prob(y).mean()
        return -float(case.credits[tree].advantage[node]) * new  # ∇ρ = ∇log π at ρ = 1

    wanted = slow_gradient(case, loss)
    batches = case.batches(case.shards()[0], 4)
    case.model.rows.clear()
    case.policy.begin(PLAN, [batches], tally)
    assert not case.model.rows  # it costs no forward
    case.policy.step(PLAN, batches, tally)
    assert close(case.gradient(), wanted)
    assert (tally.deviation, tally.clipped) == (0.0, 0.0) and tally.edges == len(kept(case))
    plain = Case()
    plain.policy.step(PLAN, plain.batches(plain.shards()[0]), tally)
    assert not close(plain.gradient(), wanted, 0.01)  # or the case would show nothing


@pytest.mark.parametrize("name", ["clipped", "guard"])
def test_with_more_steps_it_is_that_of_the_first_weights(name: str) -> None:
    """The behaviour policy of the trees is another one, and plays no part."""
    case = Case(**RECOMPUTE, **MOVING, **{"loss.name": name})
    first, step = case.model.double(), topology(PLAN).step
    ratios: list[float] = []

    def loss(tree: int, node: int, mean: Tensor, std: float) -> Tensor:
        y, a = case.latents[tree, node].double(), float(case.credits[tree].advantage[node])
        with torch.no_grad():
            before, _ = mean_of(case, first, tree, node)
            old = torch.distributions.Normal(before, std).log_prob(y).mean()
        log_ratio = torch.distributions.Normal(mean, std).log_prob(y).mean() - old
        drift = (mean - before).square().mean() / (2 * std**2)
        dt = float(PLAN.sigmas[step[node] + 1] - PLAN.sigmas[step[node]])
        if name == "guard":
            log_ratio = (log_ratio + drift) * std
        ratio = log_ratio.exp()
        ratios.append(ratio.item())
        cut = torch.maximum(-a * ratio, -a * ratio.clamp(1 - 0.002, 1 + 0.002))
        return cut / -dt if name == "guard" else cut

    one = case.shards()[0]
    steps = [case.batches(one, 5), case.batches(one, 4)]
    case.policy.begin(PLAN, steps, Tally())
    assert sum(case.model.rows) == len(one.parents)  # the first step needs no pass of its own
    for turn, batches in enumerate(steps):
        ratios.clear()
        wanted = slow_gradient(case, loss)
        case.policy.step(PLAN, batches, Tally())
        assert close(case.gradient(), wanted, 1e-3), turn
        assert (max(abs(ratio - 1) for ratio in ratios) > 1e-3) is (turn > 0)


@pytest.mark.parametrize("options", [{}, RECOMPUTE], ids=["behaviour", "recompute"])
def test_the_first_ratio_is_that_to_the_behaviour_policy(options: dict[str, str]) -> None:
    case = Case(**MOVING, **options)
    one = case.shards()[0]
    batches = case.batches(one, 4)
    case.policy.begin(PLAN, [batches], Tally())
    assert case.policy.first_ratio is None
    exact = case.model.double()
    wanted = max(
        abs(
            (log_prob(case, exact, tree, child) - case.trees[tree].log_prob[child]).exp().item() - 1
        )
        for (tree, _), row in zip(one.parents[:4].tolist(), one.edges[:4].tolist(), strict=True)
        for child in row
        if child >= 0
    )
    for _ in range(2):  # the second step moves the ratio, not this
        case.policy.step(PLAN, batches, Tally())
        assert case.policy.first_ratio == pytest.approx(wanted, rel=1e-3)
    assert wanted > CLIP
    broken = poisoned(case, float("nan"))
    broken.size = 64
    case.policy.begin(PLAN, [broken], Tally())
    case.policy.step(PLAN, broken, Tally())
    assert case.policy.first_ratio == float("inf")
