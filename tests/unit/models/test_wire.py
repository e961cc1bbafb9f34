"""Tensors and weights on the wire."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from branchgrpo.models import weights as wire

pytestmark = pytest.mark.heavy

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int64": torch.int64,
    "bool": torch.bool,
}


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
    assert [len(part) for chunk in chunks for part in chunk] == sizes
    assert [len(chunk) for chunk in chunks] == [
        wire.plan_chunks(sizes, limit).count(index) for index in range(len(chunks))
    ]
    back = wire.unpack_weights(update, chunks)
    assert list(back) == list(tensors)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name
    held = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    assert not held["d"].is_contiguous()
    assert (
        wire.load_weights(update, chunks, held)
        == wire.digest_of(held)
        == update.digest
        == wire.digest_of(tensors)
    )
    for name, tensor in tensors.items():
        assert torch.equal(held[name], tensor), name


@pytest.mark.parametrize(
    "size", [0, 1, wire.BLOCK - 1, wire.BLOCK, wire.BLOCK + 1, 3 * wire.BLOCK + 5]
)
def test_blocks_cover_a_tensor_once(size: int) -> None:
    tensors = {"a": torch.randint(256, (size,), dtype=torch.uint8), "b": torch.ones(3)}
    held = {"a": torch.zeros(size, dtype=torch.uint8), "b": torch.nn.Parameter(torch.zeros(3))}
    update, chunks = wire.pack_weights(1, tensors, wire.BLOCK)
    assert wire.load_weights(update, chunks, held) == wire.digest_of(tensors)
    assert torch.equal(held["a"], tensors["a"]) and torch.equal(held["b"], tensors["b"])


def test_the_header_is_small_and_the_bytes_travel_beside_it() -> None:
    update, chunks = wire.pack_weights(1, {"a": torch.zeros(100_000)}, 1 << 20)
    assert len(pickle.dumps(update)) < 1000
    beside: list[pickle.PickleBuffer] = []
    assert (
        len(pickle.dumps(chunks, protocol=5, buffer_callback=beside.append)) < 1000
        and sum(one.raw().nbytes for one in beside) == 400_000
    )


def test_weights_are_not_copied_on_the_way() -> None:
    """Into the store and out of it: the receiver's model takes the only copy."""
    tensors = {"a": torch.zeros(3), "b": torch.zeros(2, dtype=torch.bfloat16)}
    update, chunks = wire.pack_weights(1, tensors, 1)
    back = wire.unpack_weights(update, chunks)
    for name, tensor in tensors.items():
        tensor += 1
        assert torch.equal(back[name], tensor)


def test_read_only_weights_give_no_warning() -> None:
    """In a process of its own: torch warns once in each."""
    program = """
import torch
from branchgrpo.models import weights as wire
kinds = {"dtype": torch.bfloat16}
update, chunks = wire.pack_weights(
    1, {"a": torch.ones(3), "b": torch.ones((), **kinds), "c": torch.ones(0, 2)}, 1
)
for chunk in chunks:
    for part in chunk:
        part.flags.writeable = False  # as an object store serves them
wire.load_weights(
    update, chunks, {"a": torch.zeros(3), "b": torch.zeros((), **kinds), "c": torch.zeros(0, 2)}
)
"""
    found = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(wire.__file__).parents[1],
    )
    assert found.stderr == ""


@pytest.mark.parametrize(("part", "position"), [(0, 0), (0, 17), (0, -1), (2, 1), (4, 7), (5, -1)])
def test_a_flipped_bit_is_caught(part: int, position: int) -> None:
    tensors = {name: tensor for name, tensor in weights().items() if tensor.dtype != torch.bool}
    update, (chunk,) = wire.pack_weights(12, tensors, 10_000)
    chunk[part] = chunk[part].copy()
    chunk[part][position] ^= 1
    with pytest.raises(ValueError, match="v12: expected digest"):
        wire.load_weights(
            update, [chunk], {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
        )


def test_swapped_chunks_are_caught() -> None:
    update, chunks = wire.pack_weights(4, {"a": torch.zeros(3), "b": torch.ones(3)}, 12)
    assert len(chunks) == 2
    with pytest.raises(ValueError, match="v4: expected digest"):
        wire.load_weights(update, chunks[::-1], {"a": torch.zeros(3), "b": torch.zeros(3)})


@pytest.mark.parametrize(
    "held",
    [
        {"b": torch.zeros(1), "a": torch.zeros(3)},
        {"a": torch.zeros(3), "c": torch.zeros(1)},
        {"a": torch.zeros(3)},
        {"a": torch.zeros(3, 1), "b": torch.zeros(1)},
        {"a": torch.zeros(3, dtype=torch.int32), "b": torch.zeros(1)},
    ],
    ids=["order", "name", "fewer", "shape", "dtype"],
)
def test_weights_of_another_model_are_refused_before_anything_is_overwritten(
    held: dict[str, torch.Tensor],
) -> None:
    update, chunks = wire.pack_weights(4, {"a": torch.ones(3), "b": torch.ones(1)}, 12)
    with pytest.raises(
        ValueError, match=f"v4: expected the model's {len(held)} parameters in their order, got 2"
    ):
        wire.load_weights(update, chunks, held)
    assert not any(value.any() for value in held.values())


def test_chunks_that_do_not_fit_the_header_are_caught() -> None:
    update, chunks = wire.pack_weights(
        4, {"a": torch.zeros(3), "b": torch.ones(4), "c": torch.ones(4)}, 16
    )
    for wrong in (
        chunks[::-1],
        chunks[:2],
        [*chunks, chunks[0]],
        [],
        [chunks[0], chunks[1], [chunks[2][0][:8]]],
    ):
        with pytest.raises(
            ValueError, match="v4: expected 3 tensors of the header's sizes, 44 bytes"
        ):
            wire.unpack_weights(update, wrong)


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
