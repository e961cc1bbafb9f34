"""Checkpoints that strangers made, sealed as ours are: whatever they say, one line, no other file
is opened, and nothing waits for ever."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileOpener
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sealed import MANIFEST, STATE, listed, refusal, seal, soon
from support.small_checkpoints import WEIGHTS, at, check, on_both, put

from branchgrpo.checkpoint.files import encode_state
from branchgrpo.checkpoint.store import Damaged, Saved, Store, open_saved
from branchgrpo.errors import UserError

NOTHING = hashlib.sha256(b"").hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(put(Store(tmp_path / "run"), 1).path)


# Files that are no files


@on_both
@pytest.mark.parametrize("name", [MANIFEST, STATE, WEIGHTS, "more.safetensors"])
def test_only_regular_files_are_read(kind: str, name: str, folder: Path) -> None:
    """As they are listed, and as if they were empty: both FIFO and /dev/zero say that they have no
    bytes."""
    file = folder / name
    secret = folder.parent / "secret"
    where = at(kind, folder)
    secret.write_bytes(file.read_bytes() if file.exists() else b"")

    makers = {
        "FIFO": lambda: os.mkfifo(file),
        "symbolic link": lambda: file.symlink_to("/dev/zero"),
        "link": lambda: file.symlink_to(secret),  # the right bytes, but elsewhere
        "": file.mkdir,
    }
    for word, make in makers.items():
        file.unlink(missing_ok=True)
        if name != MANIFEST:
            listed(folder, name, b"")
        make()
        words = refusal(where)
        assert (
            words.startswith(f"{name} cannot be read: it is ")
            and words.endswith("not a regular file")
            and (word in words or kind == "local")
        ), words
        assert soon(Store(at(kind, folder.parent)).newest) is None
        file.rmdir() if file.is_dir() else file.unlink()


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/passwd",
        "..",
        "a/b.safetensors",
        "secret",
        "é.safetensors",
        "a\n.safetensors",
        MANIFEST,
        "",
    ],
)
def test_names_stay_in_the_folder(name: str, folder: Path) -> None:
    (folder.parent / "secret.safetensors").write_bytes(b"")
    body = json.loads((folder / MANIFEST).read_text())
    body["files"][name] = [NOTHING, 0]
    seal(folder, body)
    assert refusal(folder) == f"manifest.json has a wrong file named: {name!r}"


@on_both
def test_sizes_are_bounded(kind: str, folder: Path) -> None:
    """Sparse files of a terabyte: nothing of them is read."""
    where = at(kind, folder)
    os.truncate(folder / WEIGHTS, 1 << 40)
    assert refusal(where).startswith(f"{WEIGHTS} has 1,099,511,627,776 bytes")
    body = json.loads((folder / MANIFEST).read_text())
    seal(folder, body | {"files": body["files"] | {STATE: [NOTHING, 1 << 40]}})
    os.truncate(folder / STATE, 1 << 40)
    assert refusal(where) == "manifest.json has a wrong bytes of state.json: 1099511627776"
    os.truncate(folder / MANIFEST, 1 << 40)
    assert refusal(where) == "manifest.json has more than 1,048,576 bytes"
    with pytest.raises(ValueError, match="expected at most 16,777,216 bytes as JSON"):
        encode_state({"long": "x" * (16 << 20)})


# What a manifest says


def deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


WRONG = {
    "iteration": [None, True, -1, 1.0, "1", [1], 1 << 53, 1 << 9000, float("nan"), float("inf")],
    "fence": [None, False, -1, 0.5, {}, 10**300],
    "created": [
        None,
        3,
        "",
        "now",
        "2026-11-25T04:35:00+00:00\n",
        "2026-11-25T04:35:00+00:00\x1b[31m",
        "x" * 100_000,
        deep(500),
    ],
    "files": [
        None,
        [],
        {},
        3,
        "state.json",
        deep(800),
        {f"{number}.safetensors": [NOTHING, 0] for number in range(1001)},
    ],
    "version": [None, True, 1.0, "1", 2, [1], "x\n" * 1000],
    "more": [1],
}


@pytest.mark.parametrize("key", WRONG)
def test_wrong_values(key: str, folder: Path) -> None:
    body = json.loads((folder / MANIFEST).read_text())
    for value in WRONG[key]:
        seal(folder, body | {key: value})
        words = refusal(folder)
        assert words.startswith("manifest.json has ") and (key == "more" or key in words), words
    seal(folder, body)
    check(open_saved(folder), 1)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        "x",
        [NOTHING],
        [NOTHING, 0, 0],
        [NOTHING, -1],
        [NOTHING, True],
        [NOTHING, 0.0],
        [NOTHING.upper(), 0],
        [3, 0],
        {NOTHING: 0},
        [[], []],
    ],
)
def test_wrong_entries(entry: Any, folder: Path) -> None:
    (folder / "more.safetensors").write_bytes(b"")
    body = json.loads((folder / MANIFEST).read_text())
    body["files"]["more.safetensors"] = entry
    seal(folder, body)
    assert "of more.safetensors" in refusal(folder)


@pytest.mark.parametrize("key", ["version", "iteration", "fence", "created", "files"])
def test_missing_keys(key: str, folder: Path) -> None:
    body = json.loads((folder / MANIFEST).read_text())
    seal(folder, {name: value for name, value in body.items() if name != key})
    assert refusal(folder).startswith("manifest.json has ")


def test_texts_that_are_no_manifest(folder: Path) -> None:
    whole = (folder / MANIFEST).read_text()
    twice = whole.replace(' "iteration": 1,', ' "iteration": 1,\n "iteration": 1,')
    for text in (
        "[" * 100_000,
        '{"version": ' + "9" * 5000 + "}",
        "\ud800",
        '{"version": 1, "files": ' + "[" * 990 + "]" * 990 + "}",
        twice,
        "﻿" + whole,
    ):
        (folder / MANIFEST).write_bytes(text.encode("utf-8", "surrogatepass"))
        assert refusal(folder).startswith("manifest.json ")
    (folder / MANIFEST).write_text(whole)
    seal(folder, json.loads(whole), indent=2)
    assert refusal(folder) == "manifest.json is not as it was saved: its digest is another one"


PLACES = [(key,) for key in ("version", "iteration", "fence", "created", "files", "digest", "new")]
PLACES += [
    ("files", name, *rest)
    for name in (STATE, WEIGHTS, "../x.safetensors")
    for rest in ((), (0,), (1,))
]
SMALL = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from([1, 120, NOTHING, 10**400])
)
TREES = st.recursive(
    SMALL,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    folder = Path(put(Store(tmp_path_factory.mktemp("sample")), 1).path)
    return folder, (folder / MANIFEST).read_bytes()


def refused_or_right(folder: Path) -> Saved | None:
    """Nothing else may be raised."""
    try:
        found = open_saved(folder)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
        return None
    assert found.state() == {"iteration": 1} and len(found.tensors(WEIGHTS)["w"]) == 40
    return found


@settings(deadline=None, max_examples=200, database=None)
@given(place=st.sampled_from(PLACES), value=TREES)
def test_any_value_anywhere(sample: tuple[Path, bytes], place: tuple[Any, ...], value: Any) -> None:
    folder, whole = sample
    body = json.loads(whole)
    node = body
    *path, last = place
    for part in path:
        node = node.get(part, node) if isinstance(node, dict) else node
    if isinstance(node, list) or isinstance(last, str):
        node[last] = value
    seal(folder, body)
    refused_or_right(folder)


@settings(deadline=None, max_examples=200, database=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 460), st.integers(0, 255)), min_size=1, max_size=3),
    cut=st.integers(0, 2),
)
def test_any_byte_anywhere(
    sample: tuple[Path, bytes], changes: list[tuple[int, int]], cut: int
) -> None:
    folder, whole = sample
    data = bytearray(whole)
    for place, byte in changes:
        data[place % len(data)] = byte
    (folder / MANIFEST).write_bytes(data[: len(data) - cut])
    assert (refused_or_right(folder) is None) == (bytes(data[: len(data) - cut]) != whole)


# What the files hold


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "3",
        '"x"',
        "null",
        "[" * 100_000,
        "\xff",
        '{"a": 1, "a": 2}',
        '{"a": ' + "9" * 5000 + "}",
    ],
)
def test_a_state_that_is_none(text: str, folder: Path) -> None:
    (folder / STATE).write_bytes(text.encode("latin-1"))
    listed(folder, STATE)
    with pytest.raises(Damaged, match=r"state\.json (is not JSON|holds no object)") as caught:
        open_saved(folder).state()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "data", [b"", b"x" * 9, b"\xff" * 16, b"\x02" + bytes(7) + b"[]", b"\x02" + bytes(7) + b"{}!"]
)
def test_tensors_that_are_none(data: bytes, folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(data)
    listed(folder, WEIGHTS)
    with pytest.raises(Damaged, match=r"weights\.safetensors (is|has) ") as caught:
        open_saved(folder).tensors(WEIGHTS)
    assert "\n" not in str(caught.value)


# What lies beside them


def test_names_of_folders(folder: Path) -> None:
    """Numbers that no writer of ours makes count for nothing; a process id of 20 digits made each
    save fail."""
    store = Store(folder.parent)
    (folder.parent / "fences").mkdir()
    for name in (f"fences/{'9' * 200}", "fences/٣٣٣٣٣٣", "fences/x"):
        (folder.parent / name).touch()
    _, _, _, _, time, host, _ = folder.name.split("-")
    for name in (
        f"fence-{'9' * 100}-iteration-00000001-{time}-{host}-1",
        f".draft-fence-0000-iteration-00000000-{time}-{host}-{'9' * 20}",
    ):
        (folder.parent / name).mkdir()
    assert store.fence() == 0 and store.all() == [folder.name]
    put(store, 2)
    check(store.newest(), 2)
    assert store.claim() == 1


def test_errors_of_a_protocols_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raised while reading, by packages that don't know OSError."""

    class Lost(Exception):
        pass

    def read(self: LocalFileOpener, size: int = -1) -> bytes:
        raise Lost("half way\nlost")

    monkeypatch.setattr(LocalFileOpener, "read", read, raising=False)
    assert "Lost: half way lost" in refusal(f"local://{folder}")
