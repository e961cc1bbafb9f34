"""Operations, traffic and live memory of a call, counted on torch's meta device: nothing is
computed, and every shape is that of the real call."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from branchgrpo.estimate.work import Work

ATTENTION = "scaled_dot_product"
"""What all of torch's fused attention operations have in their names."""


def counted(call: Callable[[], Any]) -> Work:
    """What `call` does with tensors on the meta device."""
    with _fused_attention(), _Tally() as tally:
        call()
    return Work(**tally.sums, moved=tally.moved, peak=tally.peak)


class _Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation, backward ones too. FLOPs follow torch.utils.flop_counter; traffic is
    inputs and outputs of what has none there; storages are alive until Python frees them, which for
    eager code is when the allocator of a GPU would get them back."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sums = {"matrix": 0.0, "matrix_32": 0.0, "attention": 0.0}
        self.moved = self.live = self.peak = 0.0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        inputs, outputs = _tensors((args, kwargs)), _tensors(out)
        known = {tensor.untyped_storage()._cdata for tensor in inputs}
        made = [one for one in outputs if one.untyped_storage()._cdata not in known]
        for tensor in made:
            self._hold(tensor.untyped_storage())
        formula = flop_registry.get(func._overloadpacket)
        if formula:
            kind = "attention" if ATTENTION in str(func) else "matrix"
            if kind == "matrix" and outputs[0].dtype == torch.float32:
                kind = "matrix_32"
            self.sums[kind] += formula(*args, **kwargs, out_val=out)
        elif (made and "empty" not in str(func)) or func._schema.is_mutable:
            self.moved += sum(one.numel() * one.element_size() for one in (*inputs, *outputs))
        return out

    def _hold(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()

        def freed(_: Any) -> None:
            self.live -= size
            self._alive.pop(place, None)

        if place not in self._alive:
            self._alive[place] = weakref.ref(storage, freed)
            self.live += size
            self.peak = max(self.peak, self.live)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Attention as a GPU runs it, in one operation. On the meta device torch would take its plain
    form, which holds a matrix of tokens × tokens. A mask costs nothing here."""
    functional = torch.nn.functional
    plain = functional.scaled_dot_product_attention

    def fused(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        del attn_mask, dropout_p, enable_gqa
        attend = torch.ops.aten._scaled_dot_product_flash_attention
        out: Tensor = attend(query, key, value, is_causal=is_causal, scale=scale)[0]
        return out

    functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = plain
