"""Micro-batches are made one at a time; those that don't fit are halved, in forward or backward,
with the same gradient and figures."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from support.small_adapter import SmallAdapter
from test_update import PLAN, Case, close
from torch import Tensor

from branchgrpo.errors import UserError
from branchgrpo.learner.batches import MicroBatch
from branchgrpo.learner.policy import Tally

MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines."


class Full(torch.autograd.Function):
    """The identity, whose backward has no room for more than so many rows."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, room: int) -> Tensor:
        ctx.room = room
        return x.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        if len(gradient) > ctx.room:
            raise torch.OutOfMemoryError(MESSAGE)
        return gradient, None


class Narrow(SmallAdapter):
    """A model with memory for so many parents, in `forward` or `backward`; there the last layer's
    gradient has been computed when the first one's does not fit."""

    def __init__(self, where: str, room: int):
        super().__init__()
        self.where, self.room = where, room

    def velocity(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        if self.where == "forward" and len(x) > self.room:
            self.rows.append(len(x))
            raise torch.OutOfMemoryError(MESSAGE)
        if self.where == "forward":
            return super().velocity(x, sigma, cond)
        self.rows.append(len(x))
        first, *rest = self.denoiser
        hidden: Tensor = first(torch.cat([x, sigma[:, None], cond["text"]], 1))
        hidden = Full.apply(hidden, self.room)
        for layer in rest:
            hidden = layer(hidden)
        return hidden


def narrow(where: str, room: int, **options: str) -> Case:
    """A case whose policy trains such a model."""
    return Case(model=Narrow(where, room), **options)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_halved_until_it_fits_with_the_same_gradient(where: str) -> None:
    plain, case = Case(), narrow(where, 6)
    wanted, tally = Tally(), Tally()
    plain.policy.step(PLAN, plain.batches(plain.shards()[0]), wanted)
    batches = case.batches(case.shards()[0])
    parents = len(batches)
    case.policy.step(PLAN, batches, tally)
    tries = [parents, parents // 2, parents // 4]
    assert case.model.rows[: len(tries)] == tries and tries[-1] <= 6 < tries[-2]
    assert sum(case.model.rows[2:]) == parents  # none twice, none left out
    assert close(case.gradient(), plain.gradient(), 1e-5)
    assert tally.halved == 2 and wanted.halved == 0
    for name in ("loss", "deviation", "clipped", "edges", "forwards"):
        assert getattr(tally, name) == pytest.approx(getattr(wanted, name), rel=1e-4), name
    case.model.rows.clear()
    case.policy.step(PLAN, batches, tally)  # it is known by now
    assert max(case.model.rows) == tries[-1] and tally.halved == 2


def test_the_gate_halves_too() -> None:
    plain, case = Case(), narrow("forward", 5)
    tally = Tally()
    found = case.policy.deviation(PLAN, case.batches(case.shards()[0]), tally)
    wanted = plain.policy.deviation(PLAN, plain.batches(plain.shards()[0]), Tally())
    assert found == pytest.approx(wanted, rel=1e-4) and tally.halved > 0


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_one_parent_that_does_not_fit_is_one_line(where: str) -> None:
    case = narrow(where, 0)
    with pytest.raises(
        UserError,
        match=r"^learner\.micro_batch: out of memory even with 1 parent a forward and backward on "
        r"cpu: CUDA out of memory\. Tried to allocate 2\.00 GiB\.$",
    ):
        case.policy.step(PLAN, case.batches(case.shards()[0]), Tally())


def test_sharded_ranks_say_that_they_cannot_halve() -> None:
    case = narrow("forward", 4)
    case.policy.portions.sharded = True
    with pytest.raises(
        UserError,
        match=r"^learner\.micro_batch: expected what fits, got \d+: out of memory on cpu, and "
        r"ranks with sharded weights \(learner\.parallel: fsdp\) cannot halve it alone: CUDA "
        r"[^\n]+$",
    ):
        case.policy.step(PLAN, case.batches(case.shards()[0]), Tally())


def test_one_micro_batch_is_there_at_a_time() -> None:
    case = Case()
    batches = case.batches(case.shards()[0], 2)
    made, living = list[weakref.ref[Tensor]](), list[int]()
    take: Callable[[int, int], MicroBatch] = batches.take

    def watched(first: int, count: int) -> MicroBatch:
        living.append(sum(one() is not None for one in made))
        rows = take(first, count)
        made.extend(map(weakref.ref, (rows.x, rows.y, rows.cond["text"])))
        return rows

    batches.take = watched
    gc.disable()  # nothing must wait for it
    try:
        case.policy.step(PLAN, batches, Tally())
    finally:
        gc.enable()
    assert len(living) == -(-len(batches) // 2) > 3 and set(living) == {0}
