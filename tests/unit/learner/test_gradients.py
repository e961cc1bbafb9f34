"""Gradients in bfloat16 add up in float32."""

from __future__ import annotations

import torch

from branchgrpo.learner.gradients import GradientSums, buckets


def test_hundreds_of_bfloat16_gradients_add_up() -> None:
    draw = torch.Generator().manual_seed(0)
    parameter = torch.zeros(1000, dtype=torch.bfloat16, requires_grad=True)
    master = torch.zeros(1000)
    sums, exact = GradientSums([parameter], [master], 1), torch.zeros(1000, dtype=torch.float64)
    sums.begin()
    for _ in range(768):
        gradient = (1 + torch.randn(1000, generator=draw)).bfloat16()
        exact += gradient.double()
        parameter.grad = gradient
        sums.add()
        assert parameter.grad is None
    sums.finish()
    assert float((master.grad - exact).norm() / exact.norm()) < 1e-6


def test_what_a_failed_backward_left_does_not_count() -> None:
    parameter, unused = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    sums = GradientSums([parameter, unused], [parameter, unused], 1)
    sums.begin()
    for count, value in ((True, 1.0), (False, 100.0), (True, 2.0)):
        parameter.grad = torch.full((3,), value)
        sums.add() if count else sums.drop()
    sums.finish()
    assert parameter.grad.tolist() == [3.0] * 3
    assert unused.grad is None  # AdamW leaves it alone
    sums.begin()
    assert parameter.grad is None


def test_buckets_hold_every_tensor_once_in_order() -> None:
    tensors = [torch.zeros(size) for size in (3, 4, 1, 20, 2, 8, 1)]
    runs = list(buckets(tensors, 8))
    assert [[len(one) for one in run] for run in runs] == [[3, 4, 1], [20], [2], [8], [1]]
    assert [id(one) for run in runs for one in run] == [id(one) for one in tensors]
