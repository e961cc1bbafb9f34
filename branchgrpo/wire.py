"""Tensors as numpy byte views, and weights as versioned, digested chunks of them.

Ray's object store serves numpy without a copy (a torch tensor of 500 MB costs 13 times the time to put).
numpy has no bfloat16: such tensors travel as uint16 beside the name of their dtype.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from branchgrpo.types import U8, WeightUpdate

_BY_NAME = {
    "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64,
    "int64": torch.int64, "int32": torch.int32, "uint8": torch.uint8, "bool": torch.bool,
}  # fmt: skip


def dtype_named(name: str) -> torch.dtype:
    """The torch dtype behind a name in a config or a header."""
    return _BY_NAME[name]


def name_of(dtype: torch.dtype) -> str:
    """Its name; raises ValueError for dtypes that the wire does not carry."""
    for name, known in _BY_NAME.items():
        if known == dtype:
            return name
    raise ValueError(f"the wire carries {sorted(_BY_NAME)}, got {dtype}")


def itemsize(name: str) -> int:
    """Bytes of one element."""
    return dtype_named(name).itemsize


def to_numpy(tensor: torch.Tensor) -> tuple[NDArray[Any], str]:
    """(array of the same shape, dtype name); bfloat16 comes as uint16."""
    name = name_of(tensor.dtype)
    tensor = tensor.detach().cpu().contiguous()
    return (tensor.view(torch.uint16) if name == "bfloat16" else tensor).numpy(), name


def to_torch(array: NDArray[Any], name: str) -> torch.Tensor:
    """The inverse of to_numpy. The result is a private copy: what the object store serves is read-only."""
    tensor = torch.from_numpy(np.array(array, copy=True))
    return tensor.view(torch.bfloat16) if name == "bfloat16" else tensor


def _digest(header: Iterable[object], buffers: Iterable[NDArray[Any]]) -> str:
    digest = hashlib.sha256(repr(tuple(header)).encode())
    for buffer in buffers:
        digest.update(buffer.data.cast("B"))
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> U8:
    """A flat byte view."""
    array = to_numpy(tensor)[0]
    return array.reshape(-1).view(np.uint8)


def _fingerprint(names: Sequence[str], tensors: Sequence[torch.Tensor]) -> str:
    dtypes = [name_of(tensor.dtype) for tensor in tensors]
    shapes = [tuple(tensor.shape) for tensor in tensors]
    return _digest((tuple(names), tuple(dtypes), tuple(shapes)), (_bytes(tensor) for tensor in tensors))


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes, in the mapping's order."""
    return _fingerprint(list(tensors), list(tensors.values()))


def plan_chunks(sizes: Sequence[int], chunk_bytes: int) -> tuple[int, ...]:
    """Which chunk each tensor goes to: in order, a new chunk when the next would exceed `chunk_bytes`."""
    chunks, chunk, filled = [], 0, 0
    for size in sizes:
        if filled and filled + size > chunk_bytes:
            chunk, filled = chunk + 1, 0
        filled += size
        chunks.append(chunk)
    return tuple(chunks)


def pack_weights(version: int, tensors: Mapping[str, torch.Tensor], chunk_bytes: int) -> tuple[WeightUpdate, list[U8]]:
    """Header and byte chunks of one version of the weights."""
    names, values = tuple(tensors), list(tensors.values())
    flat = [_bytes(value) for value in values]
    chunk = plan_chunks([len(one) for one in flat], chunk_bytes)
    chunks = [np.concatenate([one for one, where in zip(flat, chunk, strict=True) if where == k]) for k in range(max(chunk, default=-1) + 1)]
    shapes = tuple(tuple(value.shape) for value in values)
    dtypes = tuple(name_of(value.dtype) for value in values)
    return WeightUpdate(version, _fingerprint(names, values), names, dtypes, shapes, chunk), chunks


def unpack_weights(update: WeightUpdate, chunks: Sequence[U8]) -> dict[str, torch.Tensor]:
    """The tensors of an update. Raises ValueError when the bytes do not have the digest of the header."""
    tensors: dict[str, torch.Tensor] = {}
    used = [0] * len(chunks)
    for name, dtype, shape, chunk in zip(update.names, update.dtypes, update.shapes, update.chunk, strict=True):
        size = int(np.prod(shape)) * itemsize(dtype)
        part = chunks[chunk][used[chunk] : used[chunk] + size]
        used[chunk] += size
        stored = "uint16" if dtype == "bfloat16" else dtype
        tensors[name] = to_torch(part.view(np.dtype(stored)).reshape(shape), dtype)
    found = digest_of(tensors)
    if found != update.digest:
        raise ValueError(f"weights v{update.version}: expected digest {update.digest[:12]}…, got {found[:12]}… after transfer")
    return tensors
