"""Updates on leaves, against float64 references of all points at once."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.small_adapter import SmallAdapter
from support.small_leaves import LeafCase, drawn_points
from torch import Tensor

from branchgrpo.learner.policy import Tally
from tests.reference import forward_losses as reference

LOSSES = {
    "nft": "{name: nft, kl_beta: 0.1}",
    "awm": "{name: awm, kl_beta: 0.1}",
    "dgpo": "{name: dgpo, kl_beta: 0.1, clip_range: 0.0}",
    "crd": "{name: crd, kl_beta: 0.1}",
}


def exact(case: LeafCase, tensors: Mapping[str, Tensor]) -> SmallAdapter:
    """A float64 model of these weights."""
    found = case.model.double()
    for name, value in found.trainable().items():
        value.data = tensors[name].detach().double().clone()
    return found


def losses(name: str, v: dict[str, Tensor], all_points: dict[str, Any]) -> Tensor:
    """[points] by the reference of that name."""
    x0, noise = all_points["x0"], all_points["noise"]
    if name == "nft":
        return reference.nft(
            v["policy"],
            v["second"],
            x0,
            noise,
            t=all_points["level"],
            advantage=all_points["advantage"],
            beta=1.0,
        )
    if name == "awm":
        log_p = reference.log_p(v["policy"], x0, noise, all_points["level"], "power")
        found = reference.awm(log_p, log_p.detach(), all_points["advantage"], 1.0)
        return found + ((v["policy"] - v["second"]) ** 2).mean(1)
    groups: dict[Any, list[int]] = {}
    for row, group in enumerate(all_points["group"]):
        groups.setdefault(group, []).append(row)
    parts = []
    for rows in groups.values():
        advantage = [all_points["advantage"][row] for row in rows]
        here = v["policy"][rows], x0[rows], noise[rows]
        if name == "dgpo":
            parts.append(reference.dgpo(here[0], v["base"][rows], *here[1:], advantage))
        else:
            parts.append(reference.crd(here[0], v["second"][rows], *here[1:], advantage, 1.0))
    return torch.cat(parts)


def wanted(name: str, case: LeafCase) -> tuple[Tensor, float]:
    """(gradient, loss) of the mean over all points, with the distance to the base."""
    all_points = drawn_points(case)
    level = torch.tensor(all_points["level"], dtype=torch.float64)
    x = (1 - level[:, None]) * all_points["x0"] + level[:, None] * all_points["noise"]
    base = copy.copy(case.model)
    base.denoiser = copy.deepcopy(case.model.base).double()  # type: ignore[union-attr]
    models = {"policy": exact(case, case.policy.named("policy")), "base": base}
    if case.policy.second:
        models["second"] = exact(case, case.policy.second.tensors)
    v = {
        which: model.velocity(x, level, {"text": all_points["text"]})
        for which, model in models.items()
    }
    v = {which: one if which == "policy" else one.detach() for which, one in v.items()}
    loss = losses(name, v, all_points).mean()
    loss = loss + 0.1 * ((v["policy"] - v["base"]) ** 2).mean(1).mean()
    loss.backward()
    parameters = models["policy"].denoiser.parameters()
    return torch.cat([value.grad.flatten() for value in parameters]), float(loss.detach())


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_the_mean_over_all_points(name: str) -> None:
    case = LeafCase(LOSSES[name])
    gradient, loss = wanted(name, case)
    found, tally = case.update()
    assert float((found - gradient).norm()) < 2e-4 * float(gradient.norm())
    assert float(gradient.norm()) > 1e-3
    assert tally.loss == pytest.approx(loss, rel=1e-4)
    count = len(drawn_points(case)["level"])
    assert tally.edges == tally.forwards == count and tally.kl > 0 and tally.clipped == 0


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("size", "ranks"), [(1, 1), (4, 1), (64, 2), (3, 5)])
def test_neither_micro_batches_nor_ranks_change_the_gradient(
    name: str, size: int, ranks: int
) -> None:
    whole, one = LeafCase(LOSSES[name]).update()
    parts, tally = LeafCase(LOSSES[name]).update(size, ranks)
    assert float((parts - whole).norm()) < 1e-5 * float(whole.norm())
    assert (tally.edges, tally.clipped) == (one.edges, one.clipped)
    assert tally.loss == pytest.approx(one.loss, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_shards_are_equal_and_keep_together_what_belongs_together(name: str) -> None:
    case = LeafCase(LOSSES[name], **{"learner.optimiser_steps": "2"})
    seen: list[tuple[int, ...]] = []
    for step in case.shards(2):
        assert len({len(shard.leaves) for shard in step}) == 1
        owners: dict[Any, set[int]] = {}
        weights = 0.0
        for rank, shard in enumerate(step):
            weights += float(shard.weight.sum())
            for row in np.flatnonzero(shard.weight):
                tree, leaf = shard.leaves[row].tolist()
                seen.append((tree, leaf, int(shard.index[row])))
                prompt = case.task.trees[tree].prompt_index
                unit = (prompt, shard.index[row]) if case.training.loss.grouped else (tree, leaf)
                owners.setdefault(unit, set()).add(rank)
        assert all(len(ranks) == 1 for ranks in owners.values())
        assert weights == pytest.approx(1.0)
    assert len(seen) == len(set(seen)) == len(drawn_points(case)["level"])


def test_leaves_without_advantage_are_left_out_where_they_have_no_gradient() -> None:
    for loss, every in (
        ("{name: awm, kl_beta: 0, mean_beta: 0}", False),
        ("{name: awm, kl_beta: 0}", True),
        ("{name: nft, kl_beta: 0}", True),
        ("{name: dgpo, kl_beta: 0}", False),
        ("{name: crd}", True),
    ):
        case = LeafCase(loss)
        case.task.credits[0].advantage[:] = 0.0
        if case.training.loss.grouped:  # then a whole prompt
            for credit in case.task.credits[:4]:
                credit.advantage[:] = 0.0
        ((shard,),) = case.shards()
        assert case.training.loss.every is every
        idle = 4 if case.training.loss.grouped else 1
        left = len(drawn_points(case)["level"]) * (12 - (0 if every else idle)) // 12
        assert len(shard.leaves) == left
        assert shard.weight[0] == pytest.approx(1 / len(drawn_points(case)["level"]))


def test_the_old_side_of_awm_is_that_of_the_weights_before_the_first_step() -> None:
    case = LeafCase("{name: awm, kl_beta: 0, mean_beta: 0}", **{"learner.optimiser_steps": "2"})
    steps = [case.batches(ranks[0], 5) for ranks in case.shards()]
    tally = Tally()
    with torch.no_grad():
        points = steps[1].take(0, len(steps[1]))
        v = case.model.velocity(points.x, points.t, points.cond)
        error = (v - points.target).square().mean(1)
        before = -points.t * 4 * ((error + 1e-10) ** 0.25 - 1e-10**0.25)
    case.training.begin(case.task, steps, tally)
    assert steps[0].scores is None and steps[1].scores is not None
    case.training.step(case.task, steps[0], tally)
    assert tally.deviation == 0  # of the first step: its own forwards
    case.training.step(case.task, steps[1], tally)
    assert torch.allclose(steps[1].scores, before, atol=1e-6) and tally.deviation > 0


def test_noise_belongs_to_the_leaf_or_to_its_prompt() -> None:
    for name, count in (("awm", 12 * 6), ("crd", 3 * 4)):  # leaves, or prompts, at each level
        case = LeafCase(LOSSES[name])
        ((shard,),) = case.shards()
        batch = case.batches(shard).take(0, len(shard.leaves))
        added = batch.target + batch.x0
        assert len({tuple(row) for row in added.mul(1e3).round().tolist()}) == count
        column = batch.t[:, None]
        assert torch.allclose(batch.x, (1 - column) * batch.x0 + column * added)


def test_levels_at_which_no_weights_train_have_no_points() -> None:
    case = LeafCase(LOSSES["crd"])
    frozen = replace(case.plan, frozen=(True, True, False, False, True))
    object.__setattr__(case.task, "plan", frozen)
    ((shard,),) = case.shards()
    assert set(shard.level) == set(case.plan.sigmas[2:4]) and set(shard.index) == {2, 3}
    assert len(shard.leaves) == 12 * 2 and shard.weight.sum() == pytest.approx(1.0)
    object.__setattr__(case.task, "plan", replace(case.plan, frozen=(True,) * 5))
    assert [len(one.leaves) for one in case.shards(2)[0]] == [0, 0]


def test_a_step_without_any_gradient_has_no_points() -> None:
    case = LeafCase("{name: awm, kl_beta: 0, mean_beta: 0}")
    for credit in case.task.credits:
        credit.advantage[:] = 0.0
    assert [len(one.leaves) for one in case.shards(3)[0]] == [0, 0, 0]
