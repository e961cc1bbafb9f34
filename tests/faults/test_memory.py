"""A batch that does not fit: halved until it does, with the same trees; named when not even one
latent fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.records import records

from branchgrpo.algo.methods.branch import BranchMethod
from branchgrpo.algo.schedule import static
from branchgrpo.errors import UserError
from branchgrpo.rollout.sampler import Sampler, Segment
from branchgrpo.types import Conditioning, Subtree, TreeKey
from tests.reference.linear_model import LinearModel

PROMPTS = ["the red circle", "the number 7 in blue"]
TREES = tuple(Subtree(TreeKey("run", 2, 30 + prompt, 0), prompt, 0) for prompt in (0, 1))
PLAN = BranchMethod(splits=(0, 2), leaves=4).plan(2, static(5, 3.0))


class Narrow(LinearModel):
    """A model with memory for so many latents a forward; `asked` is how many each forward had."""

    def __init__(self, room: int):
        super().__init__()
        self.room, self.asked = room, list[int]()

    def velocity(
        self, x: torch.Tensor, sigma: torch.Tensor, cond: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        self.asked.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines."
            )
        return super().velocity(x, sigma, cond)


def grown(model: Any, max_batch: int, sampler: Sampler | None = None) -> tuple[Segment, Sampler]:
    sampler = sampler or Sampler(model, 5, torch.float32, max_batch)
    cond: Conditioning = model.encode(records(PROMPTS))
    return sampler.grow(
        PLAN,
        subtrees=TREES,
        x=sampler.roots(PLAN, TREES),
        start=0,
        stop=PLAN.steps,
        conditioning=cond,
    ), sampler


def test_halved_until_it_fits_with_the_same_trees() -> None:
    wanted, _ = grown(LinearModel(), 64)
    narrow = Narrow(3)
    found, sampler = grown(narrow, 64)
    # two trees, after the first split: 4 latents
    assert found.halved == 1 and sampler.max_batch == 2 and max(narrow.asked) == 4
    assert torch.equal(found.frontier, wanted.frontier) and np.array_equal(
        found.log_prob, wanted.log_prob
    )
    assert found.forwards == wanted.forwards
    narrow.asked.clear()
    again, _ = grown(narrow, 64, sampler)  # it is known by now
    assert again.halved == 0 and max(narrow.asked) == 2


def test_several_halvings_in_one_segment() -> None:
    found, sampler = grown(Narrow(1), 64)
    assert found.halved == 1 and sampler.max_batch == 1  # the root level has 2 latents already
    assert torch.equal(found.frontier, grown(LinearModel(), 64)[0].frontier)


def test_nothing_fits() -> None:
    with pytest.raises(
        UserError,
        match=r"^rollout\.max_batch: out of memory even with 1 latent \[[\d, ]+\] a forward on "
        r"cpu: CUDA out of memory\. [^\n]+$",
    ):
        grown(Narrow(0), 64)
