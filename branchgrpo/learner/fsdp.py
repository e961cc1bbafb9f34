"""Weights in shards: FSDP2 over the learner ranks, and the full tensors behind shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from branchgrpo.models.base import Adapter


def shard_weights(model: Adapter, ranks: int) -> None:
    """Shard the denoiser (and its frozen copy, if there is one) over all ranks, block by block. A
    process group must exist.

    Weights that train, adapters too, are kept in float32, so that small steps of AdamW don't round
    to nothing, and computed with in the model's own dtype, as on the rollout workers; gradients are
    summed in float32.
    """
    compute = None if model.dtype == torch.float32 else model.dtype
    mesh = init_device_mesh(model.device.type, (ranks,))
    frozen = model.base
    if frozen is not None:
        _shard(
            frozen, model.blocks_of(frozen), mesh, MixedPrecisionPolicy(cast_forward_inputs=False)
        )
    if model.adapted:
        for value in model.trainable().values():
            value.data = value.data.float()
    else:
        model.module.float()
    _shard(
        model.module,
        model.blocks_of(model.module),
        mesh,
        MixedPrecisionPolicy(compute, torch.float32, cast_forward_inputs=False),
    )
    model.in_step(True)


def _shard(
    module: nn.Module, blocks: list[nn.Module], mesh: object, precision: MixedPrecisionPolicy
) -> None:
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=precision)  # type: ignore[call-overload]
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


def gathered(tensors: Mapping[str, Tensor], keep: bool) -> Iterator[tuple[str, Tensor]]:
    """(name, whole tensor in main memory) one after the other, so that a device never holds more
    than one; nothing where not `keep`. Every rank must use it up."""
    for name, tensor in tensors.items():
        whole = full(tensor.detach())
        if keep:
            yield name, whole.cpu()
