"""Tensors and weights on the wire."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from branchgrpo import wire

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int64": torch.int64, "bool": torch.bool}


def sample(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 3
    return values > 0 if dtype == torch.bool else values.to(dtype)


def weights() -> dict[str, torch.Tensor]:
    return {
        "a": sample(torch.float32, 5, 3),
        "b": sample(torch.bfloat16, 3),
        "c.scalar": torch.tensor(2.5, dtype=torch.bfloat16),
        "d": sample(torch.float32, 4, 4).t(),
        "e": torch.tensor(-7),
        "f": sample(torch.bool, 3),
        "g": sample(torch.float16, 2, 2, 2),
    }


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4)])
def test_round_trip_of_a_tensor(name: str, shape: tuple[int, ...]) -> None:
    tensor = sample(DTYPES[name], *shape)
    array, found = wire.to_numpy(tensor)
    assert found == name and array.shape == shape
    assert array.dtype == (np.uint16 if name == "bfloat16" else np.dtype(name))
    back = wire.to_torch(array, name)
    assert back.dtype == DTYPES[name] and torch.equal(back, tensor)


def test_special_values_keep_their_bits() -> None:
    tensor = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1e-40], dtype=torch.bfloat16)
    back = wire.to_torch(*wire.to_numpy(tensor))
    assert torch.equal(back.view(torch.int16), tensor.view(torch.int16))


def test_the_result_is_private_and_writable() -> None:
    array = np.arange(4, dtype=np.float32)
    array.flags.writeable = False
    back = wire.to_torch(array, "float32")
    back[0] = 9
    assert array[0] == 0


def test_views_and_gradients_are_no_obstacle() -> None:
    tensor = sample(torch.float32, 4, 6).requires_grad_()[:, ::2].t()
    array, name = wire.to_numpy(tensor)
    assert torch.equal(wire.to_torch(array, name), tensor.detach())


def test_dtypes_that_the_wire_does_not_carry() -> None:
    with pytest.raises(ValueError, match="complex64"):
        wire.to_numpy(torch.zeros(2, dtype=torch.complex64))


@pytest.mark.parametrize("name", [*DTYPES, "float64", "int32", "uint8"])
def test_itemsize(name: str) -> None:
    assert wire.itemsize(name) == torch.zeros(1, dtype=getattr(torch, name)).element_size()
    assert wire.name_of(wire.dtype_named(name)) == name


@pytest.mark.parametrize(
    ("sizes", "limit", "chunks"),
    [
        ([4, 4, 4], 8, (0, 0, 1)),
        ([4, 4, 4], 100, (0, 0, 0)),
        ([9, 1, 1], 8, (0, 1, 1)),  # one tensor may be larger than a chunk
        ([1, 9, 1], 8, (0, 1, 2)),
        ([8, 8, 8], 8, (0, 1, 2)),
        ([3, 5, 1], 8, (0, 0, 1)),
    ],
)
def test_plan_chunks(sizes: list[int], limit: int, chunks: tuple[int, ...]) -> None:
    assert wire.plan_chunks(sizes, limit) == chunks


@pytest.mark.parametrize("limit", [1, 16, 70, 10_000])
def test_weights_round_trip(limit: int) -> None:
    tensors = weights()
    update, chunks = wire.pack_weights(3, tensors, limit)
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors.values()]
    assert update.version == 3 and update.names == tuple(tensors)
    assert sum(sizes) == sum(len(chunk) for chunk in chunks)
    assert update.chunk == wire.plan_chunks(sizes, limit) and len(chunks) == update.chunk[-1] + 1
    for chunk in chunks:
        chunk.flags.writeable = False  # as an object store serves them
    back = wire.unpack_weights(update, chunks)
    assert list(back) == list(tensors)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name
    assert wire.digest_of(back) == update.digest == wire.digest_of(tensors)


@pytest.mark.parametrize("position", [0, 17, 60, -1])
def test_a_flipped_bit_is_caught(position: int) -> None:
    tensors = {name: tensor for name, tensor in weights().items() if tensor.dtype != torch.bool}
    update, chunks = wire.pack_weights(12, tensors, 10_000)
    chunks[0] = chunks[0].copy()
    chunks[0][position] ^= 1
    with pytest.raises(ValueError, match="v12"):
        wire.unpack_weights(update, chunks)


def test_swapped_chunks_are_caught() -> None:
    update, chunks = wire.pack_weights(4, {"a": torch.zeros(3), "b": torch.ones(3)}, 12)
    with pytest.raises(ValueError, match="v4"):
        wire.unpack_weights(update, chunks[::-1])


def test_digest_changes_with_name_shape_dtype_value_and_order() -> None:
    base = torch.arange(6, dtype=torch.float32)
    other = torch.zeros(1)
    digests = [
        wire.digest_of({"a": base, "b": other}),
        wire.digest_of({"b": other, "a": base}),
        wire.digest_of({"c": base, "b": other}),
        wire.digest_of({"a": base.reshape(2, 3), "b": other}),
        wire.digest_of({"a": base.reshape(3, 2), "b": other}),
        wire.digest_of({"a": base.view(torch.int32), "b": other}),  # the same bytes
        wire.digest_of({"a": base + 1, "b": other}),
        wire.digest_of({"a": base}),
    ]
    assert len(set(digests)) == len(digests)
    assert wire.digest_of({"a": base.clone(), "b": other.clone()}) == digests[0]
