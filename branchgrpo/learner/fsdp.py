"""Weights in shards: FSDP2 over the learner ranks or, in several copies, over groups of them; and
the full tensors behind shards."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from branchgrpo.models.base import Adapter


def shard_weights(model: Adapter, ranks: int, sharing: int, reduce: torch.dtype) -> None:
    """Shard the denoiser (and its frozen copy, if there is one) block by block, each copy over
    `sharing` of the ranks. A process group must exist; every rank must call it.

    Weights that train, adapters too, are kept in float32, so that small steps of AdamW don't round
    to nothing, and computed with in the model's own dtype, as on the rollout workers; gradients
    travel in `reduce` and are summed over micro-batches in float32.
    """
    compute = None if model.dtype == torch.float32 else model.dtype
    mesh = _mesh(model.device.type, ranks, sharing)
    frozen = model.base
    if frozen is not None:
        _shard(
            frozen, model.blocks_of(frozen), mesh, MixedPrecisionPolicy(cast_forward_inputs=False)
        )
    if model.adapted:
        for value in model.trainable().values():
            value.data = value.data.float()
    _shard(
        model.module,
        model.blocks_of(model.module),
        mesh,
        MixedPrecisionPolicy(compute, reduce, cast_forward_inputs=False),
        wide=not model.adapted,
    )
    model.in_step(True)


def _mesh(device: str, ranks: int, sharing: int) -> DeviceMesh:
    """All ranks in a row, or in rows of those that share a copy of the weights: on one host, as far
    as its ranks go, since forwards wait for weights and only an update's end for the other rows."""
    if sharing == ranks:
        return init_device_mesh(device, (ranks,))
    hosts: list[str] = [""] * ranks
    dist.all_gather_object(hosts, socket.gethostname())
    order = torch.tensor(sorted(range(ranks), key=lambda rank: (hosts[rank], rank)))
    return DeviceMesh(device, order.view(-1, sharing), mesh_dim_names=("copies", "shards"))


def _shard(
    module: nn.Module,
    blocks: list[nn.Module],
    mesh: object,
    precision: MixedPrecisionPolicy,
    wide: bool = False,
) -> None:
    """wide: in float32, a block at a time: the whole in float32 may be more than a card has."""
    for block in blocks:
        if wide:
            block.float()
        fully_shard(block, mesh=mesh, mp_policy=precision)  # type: ignore[call-overload]
    for value in (*module.parameters(), *module.buffers()) if wide else ():
        if value.is_floating_point() and not isinstance(value, DTensor):
            value.data = value.data.float()
    fully_shard(module, mesh=mesh, mp_policy=precision)  # type: ignore[call-overload]


def hold_whole(model: Adapter) -> None:
    """Gather a sharded denoiser's weights on this device, in the dtype they are computed with, and
    keep them: forwards then need no other rank. A collective: every rank must call it."""
    model.in_step(False)
    for part in model.module.modules():
        if isinstance(part, FSDPModule):
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()


def let_go(model: Adapter) -> None:
    """Back to shards, which are gathered block by block when their turn comes."""
    model.in_step(True)
    for part in model.module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
            # the outermost one's backward comes at once after its forward
            part.set_reshard_after_forward(part is not model.module, recurse=False)


def full(tensor: Tensor) -> Tensor:
    """The whole tensor behind a shard; other tensors as they are. A collective for shards: every
    rank must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(
    tensors: Mapping[str, Tensor], keep: bool, kinds: Mapping[str, torch.dtype] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """(name, whole tensor in main memory) one after the other, so that a device never holds more
    than one; nothing where not `keep`. Every rank must use it up. kinds: dtypes to come in, in
    which they travel too."""
    for name, tensor in tensors.items():
        held = tensor.detach()
        whole = full(held.to(kinds[name]) if kinds else held)
        if keep:
            yield name, whole.cpu()
