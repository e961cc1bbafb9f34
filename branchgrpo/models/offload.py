"""Networks that rest in main memory and are on their device for a turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Offloaded:
    """Networks whose weights rest in main memory, pinned where the device is a CUDA one.

    Inside `on_device` their parameters and buffers are copies on the device; after it they are the
    same tensors in main memory as before, so that going back copies nothing: nobody may write to
    them in a turn. Tensors that share memory (tied weights, views) share it in both places. What a
    network holds beside parameters and buffers stays where it is.
    """

    def __init__(self, modules: Iterable[nn.Module], device: str | torch.device):
        self.device = torch.device(device)
        self._tensors = distinct_tensors(modules)
        self._resting = with_copied_memory(self._tensors, self._to_main_memory)
        self._rest()

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """A turn. Whatever ends it, the device's memory is free for other processes afterwards."""
        try:
            self._hold(with_copied_memory(self._resting, self._to_device))
            yield
        finally:
            self._rest()

    def _rest(self) -> None:
        self._hold(self._resting)
        if self._tensors and self.device.type == "cuda":
            torch.cuda.empty_cache()  # other processes compute on this card, too

    def _hold(self, values: list[Tensor]) -> None:
        for tensor, value in zip(self._tensors, values, strict=True):
            tensor.data = value

    def _to_main_memory(self, memory: Tensor) -> Tensor:
        pinned = self.device.type == "cuda"  # copied twice as fast, and while kernels run
        return torch.empty(memory.shape, dtype=memory.dtype, pin_memory=pinned).copy_(memory)

    def _to_device(self, memory: Tensor) -> Tensor:
        return memory.to(self.device, non_blocking=True, copy=True)


def distinct_tensors(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Parameters and buffers of networks, each once, also those that several of them share."""
    found = {
        id(tensor): tensor
        for module in modules
        for tensor in (*module.parameters(), *module.buffers())
    }
    return list(found.values())


def with_copied_memory(tensors: list[Tensor], copy: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Tensors of the same values, shapes and strides over copies of the memory.

    copy: of the bytes (u8) of one storage; called once for each, however many tensors lie in it.
    """
    copies: dict[int, torch.UntypedStorage] = {}
    found = []
    for tensor in tensors:
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if place not in copies:
            memory = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
            copies[place] = copy(memory).untyped_storage()
        empty = torch.empty(0, dtype=tensor.dtype, device=copies[place].device)
        found.append(
            empty.set_(copies[place], tensor.storage_offset(), tensor.shape, tensor.stride())
        )
    return found
