"""Encodings in bfloat16, which travel as bits, grow the trees of the same numbers in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.small_adapter import SmallAdapter

from branchgrpo.algo.methods.branch import BranchMethod
from branchgrpo.algo.schedule import static
from branchgrpo.models import weights as wire
from branchgrpo.rollout.sampler import Sampler, Segment
from branchgrpo.types import Conditioning, Subtree, TreeKey


def grown(conditioning: Conditioning) -> Segment:
    """Trees of the third and the first of three prompts."""
    plan = BranchMethod(splits=(0, 1), leaves=4).plan(0, static(4, 3.0))
    sampler = Sampler(model=SmallAdapter(), seed=0, storage=torch.float32, max_batch=8)
    subtrees = tuple(
        Subtree(TreeKey("run", 0, prompt, 0), prompt_index=prompt, node=0) for prompt in (2, 0)
    )
    return sampler.grow(
        plan,
        subtrees=subtrees,
        x=sampler.roots(plan, subtrees),
        start=0,
        stop=plan.steps,
        conditioning=conditioning,
    )


def test_bits_are_read_as_numbers() -> None:
    text = torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).bfloat16()
    bits, dtype = wire.to_numpy(text)
    found = grown(Conditioning({"text": bits}, 3, {"text": dtype}))
    wanted = grown(Conditioning({"text": text.float().numpy()}, 3))
    assert torch.equal(found.frontier, wanted.frontier)
    np.testing.assert_array_equal(found.log_prob, wanted.log_prob)


def test_bits_of_an_unknown_dtype_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^Conditioning\.text: expected the dtype .*, got none$"):
        Conditioning({"text": np.zeros((1, 2), np.uint16)}, 1)


def test_rows_are_taken_in_the_order_asked_for() -> None:
    given = Conditioning({"text": np.arange(6).reshape(3, 2).astype(np.uint16)}, 3, {"text": "b"})
    found = given.take([2, 0])
    assert (found.rows, found.dtypes) == (2, {"text": "b"})
    assert found.arrays["text"].tolist() == [[4, 5], [0, 1]]
