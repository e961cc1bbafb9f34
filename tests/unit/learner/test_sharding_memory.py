"""Weights become float32 and shards a block at a time, and travel in the dtype that is published:
what a rank holds meanwhile, and what it sends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from branchgrpo.estimate.counting import counted
from branchgrpo.learner.fsdp import _shard, gathered

RANKS, BLOCKS, WIDTH = 8, 12, 64


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(BLOCKS))
        self.last = nn.Linear(WIDTH, 8, bias=False)
        self.register_buffer("levels", torch.ones(4))


@pytest.fixture
def ranks() -> Iterator[None]:
    """This process is the first of eight, of which there are no others."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("ranks")
def test_the_whole_is_never_there_in_float32() -> None:
    model = Model().bfloat16()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    mesh, precision = init_device_mesh("cpu", (RANKS,)), MixedPrecisionPolicy(torch.bfloat16)
    work = counted(lambda: _shard(model, list(model.blocks), mesh, precision, wide=True))
    block, last = 4 * WIDTH * WIDTH, 4 * WIDTH * 8
    shards = (BLOCKS * block + last) / RANKS
    assert shards <= work.peak <= shards + 2 * block < 0.5 * BLOCKS * block
    for name, value in model.named_parameters():
        assert isinstance(value, DTensor) and value.dtype == torch.float32
        rows = value.to_local()
        assert torch.equal(rows, before[name][: len(rows)].float())
    assert model.levels.dtype == torch.float32


class Sent(TorchDispatchMode):
    """Bytes that this rank gives to others."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "all_gather" in str(func):
            self.bytes += args[0].numel() * args[0].element_size()
        return func(*args, **kwargs or {})


@pytest.mark.usefixtures("ranks")
def test_what_is_published_travels_in_its_own_dtype() -> None:
    mesh = init_device_mesh("cpu", (RANKS,))
    whole = torch.randn(RANKS * 16, 4)
    tensors = {"w": distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None)}
    with Sent() as wide:
        (found,) = dict(gathered(tensors, True)).values()
    assert found.dtype == torch.float32 and wide.bytes == 16 * 4 * 4
    with Sent() as narrow:
        (found,) = dict(gathered(tensors, True, {"w": torch.bfloat16})).values()
    assert found.dtype == torch.bfloat16 and found.shape == whole.shape
    assert narrow.bytes == 16 * 4 * 2
