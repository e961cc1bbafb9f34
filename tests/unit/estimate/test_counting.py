"""Counts on the meta device against closed forms, and what is saved for backward against torch's
own hooks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from branchgrpo.estimate.cards import CARDS
from branchgrpo.estimate.counting import counted
from branchgrpo.estimate.denoiser import _of_all_blocks
from branchgrpo.estimate.work import Work


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16, learns: bool = False) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta", requires_grad=learns)


def test_matrix_products_by_dtype() -> None:
    narrow = counted(lambda: meta(5, 7) @ meta(7, 11))
    wide = counted(lambda: meta(5, 7, dtype=torch.float32) @ meta(7, 11, dtype=torch.float32))
    assert (narrow.matrix, narrow.matrix_32) == (2 * 5 * 7 * 11, 0)
    assert (wide.matrix, wide.matrix_32) == (0, 2 * 5 * 7 * 11)
    assert narrow.moved == wide.moved == 0 and narrow.flops == wide.flops


def test_elementwise_operations_move_what_they_read_and_write() -> None:
    x = meta(1000)
    assert counted(lambda: x * 2).moved == 2 * 2000
    assert counted(lambda: x + x.float()).moved == (2000 + 4000) + (2000 + 4000 + 4000)
    assert counted(lambda: x.view(10, 100).transpose(0, 1)).moved == 0
    assert counted(lambda: x.add_(1)).moved == 2 * 2000  # in place


def test_peak_is_of_what_is_alive_at_once() -> None:
    x = meta(1000)

    def chain() -> None:
        y = x
        for _ in range(5):
            y = y * 2  # the one before is let go

    assert counted(chain).peak == 2 * 2000
    assert counted(lambda: [x * 2 for _ in range(5)]).peak == 5 * 2000


def test_attention_is_one_operation() -> None:
    batch, heads, tokens, width = 2, 3, 256, 64
    q, k, v = (meta(batch, heads, tokens, width, learns=True) for _ in range(3))
    forward = counted(lambda: nn.functional.scaled_dot_product_attention(q, k, v))
    assert forward.attention == forward.flops == 4 * batch * heads * tokens**2 * width
    # the result, and a float32 for each row; no matrix of tokens × tokens
    assert forward.peak < 1.5 * batch * heads * tokens * width * 2

    def both() -> None:
        nn.functional.scaled_dot_product_attention(q, k, v).sum().backward()

    assert counted(both).attention == 3.5 * forward.attention  # backward: 5 products for 2


def test_what_backward_needs_against_torchs_hooks() -> None:
    layers = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.GELU())
    layers = layers.to("meta", torch.bfloat16)
    x = meta(512, 64, learns=True)
    seen: dict[int, tuple[int, Any]] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        seen[storage._cdata] = storage.nbytes(), storage
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        out = layers(x)
    saved = sum(size for size, _ in seen.values())
    weights = sum(value.nbytes for value in layers.parameters() if value.ndim > 1)
    assert out.shape == x.shape
    # input and weights are not made on the way; the output is alive beside what is saved
    held = counted(lambda: layers(x)).peak
    assert held == saved - weights - x.nbytes + out.nbytes


class Stack(nn.Module):
    """Blocks of two kinds, and layers around them."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(8, 16), nn.Linear(16, 8)
        kinds = [nn.Linear(16, 16) for _ in range(3)] + [
            nn.Sequential(nn.Linear(16, 16), nn.GELU())
        ]
        self.blocks = nn.ModuleList([*kinds, nn.Linear(16, 16), nn.Linear(16, 16)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        for block in self.blocks:
            x = x + block(x)
        found: Tensor = self.after(x)
        return found


def test_few_blocks_tell_of_all() -> None:
    stack = Stack().to("meta")
    blocks = list(stack.blocks)

    def call() -> None:
        stack(meta(32, 8, dtype=torch.float32)).sum().backward()
        stack.zero_grad()

    assert _of_all_blocks(stack, call) == counted(call)
    assert list(stack.blocks) == blocks


def test_seconds_of_a_card() -> None:
    h100 = CARDS["h100"]
    work = Work(matrix=0.61 * 989e12, attention=0.38 * 989e12, matrix_32=0.67 * 67e12)
    assert abs(h100.seconds(work) - 3.0) < 1e-9
    assert abs(h100.seconds(Work(moved=0.78 * 3.35e12)) - 1.0) < 1e-9
