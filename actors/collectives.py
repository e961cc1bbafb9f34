"""What learner ranks do together; a single rank needs no process group."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed as dist

from actors.meeting import use_interface
from branchgrpo.config.roles import Learner
from branchgrpo.errors import GateError


def form_group(options: Learner, rank: int, ranks: int, address: str) -> None:
    """Join the process group of so many ranks. address: where rank 0 is met, tcp://HOST:PORT."""
    backend = options.backend
    if backend == "auto":
        backend = "nccl" if options.gpus else "gloo"
    timeout = timedelta(seconds=options.timeout_seconds)
    use_interface(address)
    dist.init_process_group(
        backend, init_method=address, world_size=ranks, rank=rank, timeout=timeout
    )


def begin_alike(ranks: int, weights: Iterable[torch.Tensor]) -> None:
    """Give every rank the weights of rank 0."""
    if ranks > 1:
        for weight in weights:
            dist.broadcast(weight.detach(), 0)


def same_on_all(ranks: int, what: str, digest: str) -> None:
    """Raise GateError, naming `what`, unless all ranks have the same digest."""
    if ranks == 1:
        return
    found: list[str | None] = [None] * ranks
    dist.all_gather_object(found, digest)
    if len(set(found)) > 1:
        raise GateError(
            f"gate equal ranks: {what} differ between learner ranks: "
            f"{[str(one)[:12] for one in found]}"
        )


def summed(ranks: int, values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Values summed over the ranks, in main memory. device: where their backend reduces."""
    if ranks > 1:
        values = values.to(device)
        dist.all_reduce(values)
    return values.cpu()


def largest(ranks: int, value: float, device: torch.device) -> float:
    """The largest value of any rank."""
    tensor = torch.tensor(value, device=device, dtype=torch.float64)
    if ranks > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return float(tensor)
