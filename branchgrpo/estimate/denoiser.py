"""A forward and a training step of a denoiser, counted with few of its blocks: equal blocks cost
the same, so two of each kind tell of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from branchgrpo.estimate.counting import counted
from branchgrpo.estimate.work import Work
from branchgrpo.models.base import Adapter

Runs = list[list[nn.Module]]
"""Neighbouring blocks that are equal in all that costs anything."""


def forward(model: Adapter, shape: tuple[int, ...], tokens: int) -> Work:
    """Of one latent of this shape and a text of so many tokens, without a gradient. Guidance's
    second forward is part of it."""
    x, sigma, cond = _inputs(model, shape, tokens)

    def call() -> None:
        with torch.no_grad():
            model.velocity(x, sigma, cond)

    return _of_all_blocks(model.one_pass, call)


def training(model: Adapter, shape: tuple[int, ...], tokens: int) -> Work:
    """Forward and backward of one latent, with what gradient checkpointing computes twice. The
    peak is of activations: gradients of weights are let go as they come."""
    x, sigma, cond = _inputs(model, shape, tokens)

    def call() -> None:
        model.velocity(x, sigma, cond).square().mean().backward()  # type: ignore[no-untyped-call]

    learning: list[Any] = list(model.trainable().values())
    hooks = [value.register_post_accumulate_grad_hook(_let_go) for value in learning]
    try:
        return _of_all_blocks(model.one_pass, call)
    finally:
        for hook in hooks:
            hook.remove()


def decode(model: Adapter, shape: tuple[int, ...]) -> tuple[Work, int]:
    """Of one latent to pixels, and how many numbers those are."""
    pixels: list[Tensor] = []

    def call() -> None:
        with torch.no_grad():
            pixels.append(model.pixels(torch.empty(1, *shape, device="meta")))

    return counted(call), pixels[0].numel()


def _let_go(value: Tensor) -> None:
    value.grad = None


def _inputs(model: Adapter, shape: tuple[int, ...], tokens: int) -> tuple[Any, ...]:
    cond = model.fingerprint_conditioning(1, tokens)
    return torch.empty(1, *shape, device="meta"), torch.empty(1, device="meta"), cond


def _of_all_blocks(module: nn.Module, call: Callable[[], None]) -> Work:
    """Of `call` with the whole module: with one block of each run of equal ones, and for each run
    what a second one adds, as many times as it has more."""
    lists = {
        name: _runs(part)
        for name, part in module.named_children()
        if isinstance(part, nn.ModuleList)
    }
    with _cut(module, lists):
        work = counted(call)
    total = work
    for name, runs in lists.items():
        for place, run in enumerate(runs):
            if len(run) > 1:
                with _cut(module, lists, (name, place)):
                    more = counted(call)
                total = total.plus(more.plus(work, -1.0), len(run) - 1)
    return total


def _runs(blocks: nn.ModuleList) -> Runs:
    found: Runs = []
    for block in blocks:
        if found and _signature(found[-1][0]) == _signature(block):
            found[-1].append(block)
        else:
            found.append([block])
    return found


def _signature(block: nn.Module) -> tuple[Any, ...]:
    return tuple(
        (name, value.shape, value.dtype, value.requires_grad)
        for name, value in block.named_parameters()
    )


@contextmanager
def _cut(
    module: nn.Module, lists: dict[str, Runs], longer: tuple[str, int] | None = None
) -> Iterator[None]:
    """The module with the last block of each run alone; with the first as well of the run that is
    `longer`."""
    whole = {name: getattr(module, name) for name in lists}
    try:
        for name, runs in lists.items():
            kept = [
                block
                for place, run in enumerate(runs)
                for block in ([run[0], run[-1]] if (name, place) == longer else [run[-1]])
            ]
            setattr(module, name, nn.ModuleList(kept))
        yield
    finally:
        for name, blocks in whole.items():
            setattr(module, name, blocks)
