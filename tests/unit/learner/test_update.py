"""The policy update, against a reference that runs one forward per edge in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.records import records
from support.small_adapter import SmallAdapter, density, grow
from support.small_trees import plan_of, quickstart

from branchgrpo.algo.tree import topology
from branchgrpo.learner import shard
from branchgrpo.learner.batches import Latents, MicroBatches
from branchgrpo.learner.policy import PolicyUpdate, Tally
from branchgrpo.types import BranchPlan, LearnerShard

PLAN = plan_of(2, 1, 2, 1, 1)  # 4 random steps, parents with one and with two children
CLIP = 1e-2
TREES = 3
OPTIONS = {
    "learner.max_grad_norm": "1.0e9",
    "loss.clip_range": str(CLIP),
    "advantage.path_beta": "1.0",
    "learner.warmup": "0",
    "learner.schedule": "constant",
}


class Case:
    """Trees, their credit and a policy. Behaviour log-probs are at most `off` away from the
    model's."""

    def __init__(
        self,
        plan: BranchPlan = PLAN,
        off: float = 2 * CLIP,
        model: SmallAdapter | None = None,
        **overrides: str,
    ):
        self.plan, self.model = plan, SmallAdapter()
        self.cond = {
            "text": torch.from_numpy(self.model.encode(records(["a"] * TREES)).arrays["text"])
        }
        self.trees, self.latents = grow(
            self.model, plan=plan, trees=TREES, text=self.cond["text"], off=off
        )
        self.config = quickstart(OPTIONS | overrides)
        self.credits = self.config.credit.assign(plan, self.trees, 0, {})
        self.model = model or self.model  # of the same weights
        self.policy = PolicyUpdate(self.config, self.model, 1)
        self.model.rows.clear()

    def shards(self, ranks: int = 1, every: bool = False) -> list[LearnerShard]:
        return shard.split(
            self.plan, credits=self.credits, ranks=ranks, optimiser_steps=1, seed=0, every=every
        )[0]

    def batches(
        self, one: LearnerShard, size: int = 64, velocities: Latents | None = None
    ) -> MicroBatches:
        return MicroBatches(
            self.plan,
            shard=one,
            trees=self.trees,
            latents=lambda tree, node: self.latents[tree, node],
            texts=lambda prompts: {"text": self.cond["text"][list(prompts)]},
            size=size,
            device=torch.device("cpu"),
            velocities=velocities,
        )

    def gradient(self) -> torch.Tensor:
        return torch.cat([value.grad.flatten().double() for value in self.policy.parameters])


def reference() -> tuple[torch.Tensor, float, int]:
    """(gradient, loss, clipped edges) of the mean clipped loss over kept edges."""
    case = Case()
    exact, topo = case.model.double(), topology(PLAN)
    losses, clipped = [], 0
    for index, (tree, credit) in enumerate(zip(case.trees, case.credits, strict=True)):
        for node in np.flatnonzero(credit.keep).tolist():
            x, y = case.latents[index, int(topo.parent[node])], case.latents[index, node]
            ratio = (
                density(
                    exact,
                    plan=PLAN,
                    step=int(topo.step[node]),
                    x=x,
                    y=y,
                    text=case.cond["text"][index],
                )
                - float(tree.log_prob[node])
            ).exp()
            a = float(credit.advantage[node])
            bounded = min(max(ratio.item(), 1 - CLIP), 1 + CLIP)
            cut = -a * bounded > -a * ratio.item()
            clipped += cut
            losses.append(torch.tensor(-a * bounded, dtype=torch.float64) if cut else -a * ratio)
    loss = torch.stack(losses).mean()
    loss.backward()
    return (
        torch.cat([value.grad.flatten() for value in exact.denoiser.parameters()]),
        float(loss),
        clipped,
    )


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 2e-4) -> bool:
    return float((found - wanted).norm()) <= tolerance * float(wanted.norm())


def test_sibling_shared_gradient_is_that_of_one_forward_per_edge() -> None:
    wanted, loss, clipped = reference()
    case, tally = Case(), Tally()
    norm = case.policy.step(PLAN, case.batches(case.shards()[0]), tally)
    edges = sum(int(credit.keep.sum()) for credit in case.credits)
    parents = len(case.shards()[0].parents)
    assert clipped > 0  # or the case would not test clipping
    assert close(case.gradient(), wanted)
    assert norm == pytest.approx(float(wanted.norm()), rel=1e-3)
    assert tally.loss == pytest.approx(loss, abs=1e-5)
    assert (tally.edges, tally.clipped, tally.forwards) == (edges, clipped, parents)
    assert case.model.rows == [parents] and parents < edges  # one forward serves all siblings


@pytest.mark.parametrize("size", [1, 2, 5, 64])
def test_micro_batches_do_not_change_the_gradient(size: int) -> None:
    one = Case()
    other = Case()
    tally = Tally()
    one.policy.step(PLAN, one.batches(one.shards()[0]), Tally())
    other.policy.step(PLAN, other.batches(other.shards()[0], size), tally)
    assert max(other.model.rows) <= size
    assert close(other.gradient(), one.gradient(), 1e-5)


@pytest.mark.parametrize("ranks", [2, 4, 7])
def test_shards_with_padding_add_up_to_the_same_gradient(ranks: int) -> None:
    one = Case()
    many = Case()
    whole = Tally()
    tally = Tally()
    one.policy.step(PLAN, one.batches(one.shards()[0]), whole)
    shards = many.shards(ranks)
    # some are padding
    assert sum(len(part.parents) for part in shards) > len(one.shards()[0].parents)
    together = LearnerShard(
        *(
            np.concatenate([getattr(part, name) for part in shards])
            for name in ("parents", "edges", "advantage", "weight")
        )
    )
    many.policy.step(PLAN, many.batches(together, size=len(shards[0].parents)), tally)
    assert close(many.gradient(), one.gradient(), 1e-5)
    assert (tally.edges, tally.clipped, tally.forwards) == (
        whole.edges,
        whole.clipped,
        whole.forwards,
    )
    assert tally.deviation == pytest.approx(whole.deviation, rel=1e-4)


def test_the_gradient_is_clipped_to_its_norm() -> None:
    wanted, _, _ = reference()
    bound = float(wanted.norm()) / 10
    case = Case(**{"learner.max_grad_norm": f"{bound:.12f}"})
    norm = case.policy.step(PLAN, case.batches(case.shards()[0]), Tally())
    assert norm == pytest.approx(float(wanted.norm()), rel=1e-3)
    assert close(case.gradient(), wanted / 10)


def test_a_step_is_one_step_of_adamw() -> None:
    case = Case()
    before = [value.detach().clone() for value in case.policy.parameters]
    case.policy.step(PLAN, case.batches(case.shards()[0]), Tally())
    options = case.config.learner
    for old, new in zip(before, case.policy.parameters, strict=True):
        moved = old * (
            1 - options.learning_rate * options.weight_decay
        ) - options.learning_rate * new.grad / (new.grad.abs() + 1e-8)
        assert torch.allclose(new.detach(), moved, atol=1e-6)
        assert not torch.equal(new.detach(), old)


def poisoned(case: Case, value: float) -> MicroBatches:
    """Micro-batches of 4, the second of which has a value that is not finite."""
    batches = case.batches(case.shards()[0], 4)
    (tree, node), sound = batches.shard.parents[4].tolist(), batches.latents
    bad = sound(tree, node).clone()
    bad[0] = value
    batches.latents = lambda *which: bad if which == (tree, node) else sound(*which)
    return batches


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(value: float) -> None:
    case = Case()
    before = [parameter.detach().clone() for parameter in case.policy.parameters]
    assert not np.isfinite(case.policy.step(PLAN, poisoned(case, value), Tally()))
    assert all(
        torch.equal(old, new) for old, new in zip(before, case.policy.parameters, strict=True)
    )
    assert not case.policy.optimiser.state  # nor does the optimiser remember it
    # and the next step is sound
    assert np.isfinite(case.policy.step(PLAN, case.batches(case.shards()[0]), Tally()))
    assert not torch.equal(before[0], case.policy.parameters[0])


def test_deviation_is_the_largest_ratio_error() -> None:
    case = Case()
    found = case.policy.deviation(PLAN, case.batches(case.shards()[0]), Tally())
    # behaviour log-probs are off by at most 2 · CLIP
    assert found == pytest.approx(np.exp(2 * CLIP) - 1, rel=1e-2)
    (none,) = shard.split(
        PLAN,
        credits=[replace(credit, keep=np.zeros_like(credit.keep)) for credit in case.credits],
        ranks=1,
        optimiser_steps=1,
        seed=0,
    )[0]
    assert case.policy.deviation(PLAN, case.batches(none), Tally()) == 0.0
    assert all(value.grad is None for value in case.policy.parameters)


def test_a_ratio_that_is_not_finite_is_no_agreement() -> None:
    case = Case()
    worst = case.policy.deviation(PLAN, poisoned(case, float("nan")), Tally())
    assert not worst <= 1e9  # the gate must not let it pass
