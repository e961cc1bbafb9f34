"""Gradients of many micro-batches, summed in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

BUCKET = 8 << 20
"""Numbers that travel in one all-reduce: 32 MB. Larger ones are no faster, and one of all gradients
would hold them twice."""


class GradientSums:
    """Sums of the gradients of parameters, float32, apart from `grad`: in bfloat16 most of a sum of
    hundreds would round away, and what a failed backward left behind must not count.

    Parameters in shards (DTensor) are left alone: FSDP2 adds their gradients up in float32, over
    ranks and in `grad`.
    """

    def __init__(self, parameters: Sequence[Tensor], masters: Sequence[Tensor], ranks: int):
        self.parameters, self.masters, self.ranks = parameters, masters, ranks
        self.sharded = any(isinstance(value, DTensor) for value in parameters)
        self.sums: list[Tensor] = []
        self.used: list[bool] = []  # has any micro-batch given this parameter a gradient?

    def begin(self) -> None:
        """Forget what there is."""
        for value in (*self.masters, *self.parameters):
            value.grad = None
        if not self.sharded:
            self.sums = [torch.zeros_like(master) for master in self.masters]
            self.used = [False] * len(self.sums)

    def drop(self) -> None:
        """Forget the gradients of the last backward, as when it failed halfway."""
        for value in self.parameters if not self.sharded else []:
            value.grad = None

    def add(self) -> None:
        """Add the gradients of the last backward, whose memory is free then. Takes no memory, so
        that it cannot fail halfway."""
        if self.sharded:
            return
        for index, value in enumerate(self.parameters):
            if value.grad is not None:
                self.sums[index].add_(value.grad)
                self.used[index] = True
        self.drop()

    def finish(self) -> None:
        """Sum over the ranks, and give the masters their gradients. Every rank must call it,
        however many micro-batches it had."""
        if self.sharded:
            return
        if self.ranks > 1:
            anywhere = torch.tensor(self.used, dtype=torch.int32, device=self.sums[0].device)
            dist.all_reduce(anywhere, dist.ReduceOp.MAX)
            self.used = anywhere.bool().tolist()
            for bucket in buckets(self.sums, BUCKET):
                _all_reduce(bucket)
        for master, total, used in zip(self.masters, self.sums, self.used, strict=True):
            master.grad = total if used else None
        self.sums = []


def buckets(tensors: Sequence[Tensor], numbers: int) -> Iterator[list[Tensor]]:
    """Runs of tensors with at most so many numbers together; a larger tensor is a run of its
    own."""
    run: list[Tensor] = []
    filled = 0
    for tensor in tensors:
        if run and filled + tensor.numel() > numbers:
            yield run
            run, filled = [], 0
        run.append(tensor)
        filled += tensor.numel()
    if run:
        yield run


def _all_reduce(tensors: list[Tensor]) -> None:
    """Sum of each over the ranks, in place, in one message."""
    if len(tensors) == 1:
        dist.all_reduce(tensors[0])
        return
    flat = torch.cat([one.flatten() for one in tensors])
    dist.all_reduce(flat)
    parts = torch.split(flat, [one.numel() for one in tensors])
    for one, part in zip(tensors, parts, strict=True):
        one.copy_(part.view_as(one))
