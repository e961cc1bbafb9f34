"""Micro-batches of as many parents as fit into a device's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch

from branchgrpo.errors import UserError, one_line

Rows = TypeVar("Rows", covariant=True)
Taken = TypeVar("Taken")


class Batches(Protocol[Rows]):
    """A shard, of which any run of rows is made on the device when it is asked for."""

    size: int  # rows of a micro-batch at most

    def __len__(self) -> int: ...

    def take(self, first: int, count: int) -> Rows:
        """The micro-batch of these rows."""


class Portions:
    """Goes through shards in micro-batches; one that does not fit is halved and made again, and
    those after it are no larger."""

    def __init__(self, most: int, device: torch.device, sharded: bool):
        """most: parents of a micro-batch to begin with. sharded: forwards are collectives, so that
        a rank cannot make more of them than others."""
        self.most = most
        self.device = device
        self.sharded = sharded

    def run(self, batches: Batches[Taken], work: Callable[[int, Taken], None]) -> int:
        """`work(first parent, micro-batch)` on one after the other. Returns how often they were
        halved. `work` must have counted nothing when it raises torch.OutOfMemoryError.

        Raises UserError for a single parent that does not fit, and in sharded ranks.
        """
        first = halved = 0
        while first < len(batches):
            count = min(self.most, batches.size, len(batches) - first)
            try:
                work(first, batches.take(first, count))
                first += count
                continue
            except torch.OutOfMemoryError as error:
                self._halve(count, error)
            # Here the error has gone, and with it what its frames held of the device.
            halved += 1
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # of blocks for the larger size
        return halved

    def _halve(self, count: int, error: torch.OutOfMemoryError) -> None:
        line = one_line(str(error).partition("\n")[0])
        if self.sharded:
            raise UserError(
                f"learner.micro_batch: expected what fits, got {count}: out of memory on "
                f"{self.device}, and ranks with sharded weights (learner.parallel: fsdp) cannot "
                f"halve it alone: {line}"
            ) from error
        if count == 1:
            raise UserError(
                "learner.micro_batch: out of memory even with 1 parent a forward and backward on "
                f"{self.device}: {line}"
            ) from error
        self.most = count // 2
