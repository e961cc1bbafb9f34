"""Tensors as numpy byte views, and weights as versioned, digested chunks of them.

Ray's object store serves numpy without a copy (a torch tensor of 500 MB costs 13 times the time to
put).
numpy has no bfloat16: such tensors travel as uint16 beside the name of their dtype.
Weights are copied once on either side, into the store and into the model, and hashed once: a
receiver hashes what its model holds.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from branchgrpo.types import U8, WeightUpdate

BLOCK = 1 << 18
"""Bytes that are copied and then digested while the cache still has them: together a third less
time than one after the other."""

THREADS = 4
"""That digest what is published, while workers wait for it."""

_BY_NAME = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
    "int64": torch.int64,
    "int32": torch.int32,
    "uint8": torch.uint8,
    "bool": torch.bool,
}


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
    """The inverse of to_numpy. The result is a private copy: what the object store serves is
    read-only."""
    return _tensor(np.array(array, copy=True), name)


def _tensor(array: NDArray[Any], name: str) -> torch.Tensor:
    """The same memory as a tensor."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if name == "bfloat16" else tensor


def _bytes(tensor: torch.Tensor) -> U8:
    """A flat byte view."""
    array = to_numpy(tensor)[0]
    return array.reshape(-1).view(np.uint8)


def _digest(part: U8) -> bytes:
    return xxhash.xxh3_128_digest(part.data)


def _combined(header: tuple[object, ...], digests: Iterable[bytes]) -> str:
    return xxhash.xxh3_128_hexdigest(repr(header).encode() + b"".join(digests))


def _described(
    tensors: Mapping[str, torch.Tensor],
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Names, dtypes and shapes."""
    return (
        tuple(tensors),
        tuple(name_of(one.dtype) for one in tensors.values()),
        tuple(tuple(one.shape) for one in tensors.values()),
    )


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """xxh3_128 over names, dtypes, shapes and the xxh3_128 of each tensor's bytes, in the mapping's
    order: tells damage and mistakes, not forgery."""
    return _combined(_described(tensors), (_digest(_bytes(one)) for one in tensors.values()))


def plan_chunks(sizes: Sequence[int], chunk_bytes: int) -> tuple[int, ...]:
    """Which chunk each tensor goes to: in order, a new chunk when the next would exceed
    `chunk_bytes`."""
    chunks = []
    chunk = 0
    filled = 0
    for size in sizes:
        if filled and filled + size > chunk_bytes:
            chunk, filled = chunk + 1, 0
        filled += size
        chunks.append(chunk)
    return tuple(chunks)


def pack_weights(
    version: int, tensors: Mapping[str, torch.Tensor], chunk_bytes: int
) -> tuple[WeightUpdate, list[list[U8]]]:
    """Header and chunks of one version of the weights. A chunk is a list of byte views, one for
    each tensor: they share the memory of tensors that lie in main memory, and must be sent before
    those change."""
    parts = [_bytes(one) for one in tensors.values()]
    chunks: list[list[U8]] = []
    for part, chunk in zip(
        parts, plan_chunks([len(part) for part in parts], chunk_bytes), strict=True
    ):
        if chunk == len(chunks):
            chunks.append([])
        chunks[chunk].append(part)
    header = _described(tensors)
    with ThreadPoolExecutor(THREADS) as pool:
        digest = _combined(header, pool.map(_digest, parts))
    return WeightUpdate(version, digest, *header), chunks


def unpack_weights(update: WeightUpdate, chunks: Sequence[Sequence[U8]]) -> dict[str, torch.Tensor]:
    """The tensors of an update, as views of the chunks: only to be read, and their bytes are not
    verified. Raises ValueError when tensors are missing or of other sizes than the header's."""
    parts = [part for chunk in chunks for part in chunk]
    found = [len(part) for part in parts]
    wanted = [
        math.prod(shape) * itemsize(dtype)
        for dtype, shape in zip(update.dtypes, update.shapes, strict=True)
    ]
    if found != wanted:
        raise ValueError(
            f"weights v{update.version}: expected {len(wanted)} tensors of the header's "
            f"sizes, {sum(wanted)} bytes, got {len(found)}, {sum(found)} bytes"
        )
    tensors: dict[str, torch.Tensor] = {}
    with warnings.catch_warnings():
        # nor is it written to
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        for name, dtype, shape, part in zip(
            update.names, update.dtypes, update.shapes, parts, strict=True
        ):
            stored = "uint16" if dtype == "bfloat16" else dtype
            tensors[name] = _tensor(part.view(np.dtype(stored)).reshape(shape), dtype)
    return tensors


def load_weights(
    update: WeightUpdate, chunks: Sequence[Sequence[U8]], held: Mapping[str, torch.Tensor]
) -> str:
    """Overwrite a model's tensors `held` by an update. Returns the digest of what they hold then.

    Raises ValueError when names, dtypes or shapes are not the header's; and when the digest is not,
    which is known only after they were overwritten.
    """
    tensors, header = unpack_weights(update, chunks), _described(held)
    if header != _described(tensors):
        differing = sorted(
            set(zip(*header, strict=True)) ^ set(zip(*_described(tensors), strict=True))
        )[:3]
        raise ValueError(
            f"weights v{update.version}: expected the model's {len(held)} parameters in "
            f"their order, got {len(tensors)}; differing: {differing}"
        )
    digest = _combined(
        header, (_overwrite(held[name].detach(), value) for name, value in tensors.items())
    )
    if digest != update.digest:
        raise ValueError(
            f"weights v{update.version}: expected digest {update.digest[:12]}…, got "
            f"{digest[:12]}… after loading"
        )
    return digest


def _overwrite(target: torch.Tensor, source: torch.Tensor) -> bytes:
    """Copy. Returns the digest of what the target holds then."""
    if target.device.type != "cpu" or not target.is_contiguous():
        target.copy_(source)
        return _digest(_bytes(target))
    new = _bytes(source)
    held = _bytes(target)
    digest = xxhash.xxh3_128()
    for start in range(0, len(new), BLOCK):
        block = held[start : start + BLOCK]
        np.copyto(block, new[start : start + BLOCK])
        digest.update(block.data)
    return digest.digest()
