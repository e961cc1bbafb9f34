"""Headers of safetensors files that strangers made, and files that are none: one line, never a
hang, never much memory."""

from __future__ import annotations

import json
import os
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, save

from branchgrpo.errors import UserError
from branchgrpo.files.regular import opened, parse_json, read, read_json
from branchgrpo.files.safetensors_header import MAX_HEADER, SIZES, BadHeader, Entry, header
from branchgrpo.models.files import check_safetensors, json_file
from branchgrpo.rewards.common.checkpoints import check_checkpoint, read_state


def packed(text: Any, data: bytes = b"") -> bytes:
    """A file with this header, an object or its JSON."""
    raw = text if isinstance(text, bytes) else json.dumps(text).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def entry(
    dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4), **more: Any
) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def at(folder: Path, data: bytes) -> Path:
    (path := folder / "x.safetensors").write_bytes(data)
    return path


def test_says_what_the_library_wrote(tmp_path: Path) -> None:
    tensors = {
        "a": torch.zeros(2, 3),
        "b": torch.zeros(5, dtype=torch.bfloat16),
        "c": torch.tensor(True),
        "d": torch.zeros(0, 4),
    }
    found = header(at(tmp_path, save(tensors, {"format": "pt", "alpha": "8"})))
    assert found.metadata == {"format": "pt", "alpha": "8"}
    assert {name: (one.dtype, one.shape, one.numbers) for name, one in found.tensors.items()} == {
        "a": ("F32", (2, 3), 6),
        "b": ("BF16", (5,), 5),
        "c": ("BOOL", (), 1),
        "d": ("F32", (0, 4), 0),
    }
    assert sorted(one.end - one.begin for one in found.tensors.values()) == [0, 1, 10, 24]
    assert header(at(tmp_path, packed({}))).tensors == {}
    assert header(at(tmp_path, packed({"a": entry(), "__metadata__": None}, bytes(4)))).tensors == {
        "a": Entry("F32", (1,), 0, 4)
    }


BAD = {
    "nothing": (b"", "is empty"),
    "a short length": (b"\x01\0\0", "is truncated"),
    "a length after the end": (struct.pack("<Q", 3) + b"{}", "is truncated"),
    "a length of 2^64 - 1": (b"\xff" * 8 + b"{}", "is truncated"),
    "no JSON": (packed(b"{'a'}"), "is not JSON"),
    "no UTF-8": (packed(b'{"\xff": 1}'), "is not JSON"),
    "a list": (packed([]), "no JSON object"),
    "nested": (packed(b"[" * 100_000), "nested too deep"),
    "a number of 5,000 digits": (packed(b'{"a": ' + b"9" * 5000 + b"}"), "is not JSON"),
    "a name twice": (
        packed(b'{"a": %s, "a": %s}' % ((json.dumps(entry()).encode(),) * 2), bytes(4)),
        "the name 'a' occurs twice",
    ),
    "metadata of numbers": (packed({"__metadata__": {"a": 1}}), "__metadata__"),
    "a list of metadata": (packed({"__metadata__": ["a"]}), "__metadata__"),
    "no entry": (packed({"a": 3}), "no dtype, shape and data_offsets of tensor 'a'"),
    "half an entry": (
        packed({"a": {"dtype": "F32"}}),
        "no dtype, shape and data_offsets of tensor 'a'",
    ),
    "a strange dtype": (packed({"a": entry("F128")}, bytes(4)), "unknown dtype"),
    "a list of dtypes": (packed({"a": entry(["F32"])}, bytes(4)), "unknown dtype"),
    "a dtype that torch has not": (
        packed({"a": entry("F4", (2,), (0, 1))}, bytes(1)),
        "unknown dtype",
    ),
    "a text for a shape": (packed({"a": entry(shape="1")}, bytes(4)), "no lengths"),
    "a negative length": (packed({"a": entry(shape=[-1], offsets=[0, -4])}), "no lengths"),
    "true": (packed({"a": entry(shape=[True])}, bytes(4)), "no lengths"),
    "a fraction": (packed({"a": entry(shape=[1.0])}, bytes(4)), "no lengths"),
    "not a number": (
        packed(b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}', bytes(4)),
        "no lengths",
    ),
    "too many dimensions": (packed({"a": entry(shape=[1] * 65)}, bytes(4)), "no lengths"),
    "three offsets": (packed({"a": entry(offsets=[0, 4, 8])}, bytes(4)), "no lengths"),
    "more than there are": (packed({"a": entry(shape=[2])}, bytes(4)), "don't fit"),
    "2^126 numbers": (packed({"a": entry(shape=[2**62, 2**62, 4])}, bytes(4)), "don't fit"),
    "offsets that go back": (packed({"a": entry(shape=[0], offsets=[4, 0])}), "don't fit"),
    "a gap": (packed({"a": entry(offsets=[4, 8])}, bytes(8)), "gap or overlap"),
    "the same bytes twice": (packed({"a": entry(), "b": entry()}, bytes(4)), "gap or overlap"),
    "bytes after the last": (
        packed({"a": entry()}, bytes(5)),
        "5 bytes in its tensors, 4 by its header",
    ),
    "bytes that are missing": (
        packed({"a": entry()}, bytes(3)),
        "3 bytes in its tensors, 4 by its header",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_headers_that_are_none(tmp_path: Path, what: str) -> None:
    data, line = BAD[what]
    path = at(tmp_path, data)
    with pytest.raises(BadHeader, match=line) as caught:
        header(path)
    for check in (check_safetensors, check_checkpoint, read_state):
        with pytest.raises(UserError) as told:
            check("key", path)
        assert str(
            told.value
        ) == f"key: expected a safetensors file, {path} {caught.value}" and "\n" not in str(
            told.value
        )
        assert len(str(told.value)) < 500 + len(str(path))


def test_a_header_is_bounded(tmp_path: Path) -> None:
    """16 MB and a byte, of which nothing is on the disk: refused without being read."""
    path = at(tmp_path, struct.pack("<Q", MAX_HEADER + 1))
    os.truncate(path, 1 << 40)
    with pytest.raises(BadHeader, match=r"a header of 16,777,217 bytes, more than 16,777,216"):
        header(path)


WHOLE = save({"a": torch.arange(3.0), "b": torch.zeros(2, 2, dtype=torch.int8)}, {"format": "pt"})
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 9)
    | st.sampled_from([2**63, 1e400, "F32", "I8", "", "a"])
    | st.lists(st.integers(0, 12), max_size=3)
)


def agreed(data: bytes, folder: Path) -> None:
    """What our reader takes, the library takes too, and both see the same; what it refuses is one
    line."""
    try:
        found = header(at(folder, data))
    except BadHeader as error:
        assert "\n" not in str(error)
        return
    try:
        tensors = load(data)
    except SafetensorError as error:  # it is stricter in what JSON is
        assert "JSON" in str(error) or "header" in str(error) or "start" in str(error)
        return
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        name: one.shape for name, one in found.tensors.items()
    }
    assert all(
        tensors[name].element_size() == SIZES[one.dtype] for name, one in found.tensors.items()
    )


@settings(deadline=None, max_examples=250, database=None)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=3
    ),
    cut=st.integers(0, 3),
)
def test_any_changed_byte(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(WHOLE)
    for place, value in changes:
        data[place] = value
    agreed(bytes(data[: len(data) - cut]), tmp_path_factory.getbasetemp())


@settings(deadline=None, max_examples=250, database=None)
@given(
    name=st.sampled_from(["a", "b", "__metadata__"]),
    key=st.sampled_from(["dtype", "shape", "data_offsets", "more", ""]),
    value=VALUES,
)
def test_any_changed_value(
    tmp_path_factory: pytest.TempPathFactory, name: str, key: str, value: Any
) -> None:
    length = struct.unpack("<Q", WHOLE[:8])[0]
    text = json.loads(WHOLE[8 : 8 + length])
    text[name] = value if not key else text[name] | {key: value}
    agreed(packed(text, WHOLE[8 + length :]), tmp_path_factory.getbasetemp())


# Files that are no files


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """None of these waits or goes on for ever."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "file").write_bytes(b"[1]")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for name, kind in (
            ("fifo", "a FIFO"),
            ("zero", "a device"),
            ("socket", "a socket"),
            (".", "a folder"),
            ("none", "No such file"),
            ("a\0b", "null"),
        ):
            with pytest.raises(OSError, match=kind):
                opened(tmp_path / name)
    with pytest.raises(OSError, match="a symbolic link"):
        opened(tmp_path / "link", follow=False)
    assert read_json(tmp_path / "link") == [1] and read(tmp_path / "file", 3) == b"[1]"
    with pytest.raises(OSError, match="more than 2 bytes"):
        read(tmp_path / "file", 2)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".json"])
def test_weights_and_configs_that_are_no_files(tmp_path: Path, suffix: str) -> None:
    """FIFOs hung these readers for ever; /dev/zero as JSON took all memory."""
    os.mkfifo(fifo := tmp_path / f"fifo{suffix}")
    (zero := tmp_path / f"zero{suffix}").symlink_to("/dev/zero")
    for path in (fifo, zero):
        for check in [json_file] if suffix == ".json" else [check_checkpoint, read_state]:
            with pytest.raises(UserError, match="not a regular file") as caught:
                check("key", path)
            assert "\n" not in str(caught.value)


def test_json_that_is_none() -> None:
    for data in (
        b"",
        b"{",
        b"[" * 100_000,
        b"\xff\xfe[\x001\x00]\x00",
        b"9" * 5000,
        b"\xef\xbb\xbf[]",
    ):
        with pytest.raises(ValueError):
            parse_json(data)
    assert parse_json(b'{"a": 1, "a": 2}') == {"a": 2}
    with pytest.raises(ValueError, match="'a' occurs twice"):
        parse_json(b'[{"a": 1, "b": {}, "a": 1}]', once=True)
