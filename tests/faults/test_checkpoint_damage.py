"""Checkpoints whose files are missing, cut or altered: passed over, with a reason, and not counted
as kept."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.small_checkpoints import WEIGHTS, at, check, on_both, put, two

from branchgrpo.checkpoint.store import Damaged, Store, open_saved
from branchgrpo.errors import UserError


def damaged(store: Store, folder: Path, name: str, damage: Callable[[Path], object]) -> str:
    """The reason for which a copy of `store`, with its newest checkpoint damaged, falls back to
    iteration 1."""
    file = folder / store.all()[-1] / name
    kept = file.read_bytes()
    damage(file)
    check(store.newest(), 1)
    ((which, reason),) = store.damaged
    assert which == store.all()[-1] and "\n" not in reason and name in reason
    with pytest.raises(UserError, match=r"^--resume: expected a checkpoint in .*" + name):
        open_saved(file.parent)
    if file.is_dir():
        file.rmdir()
    file.write_bytes(kept)
    return reason


FILES = ["state.json", WEIGHTS, "manifest.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere(tmp_path: Path, name: str) -> None:
    store = two(tmp_path)
    size = (tmp_path / "run" / store.all()[-1] / name).stat().st_size
    for index in range(0, size, 1 if name == "manifest.json" else 5):

        def flip(file: Path, index: int = index) -> None:
            data = bytearray(file.read_bytes())
            data[index] ^= 1 << index % 8
            file.write_bytes(data)

        damaged(store, tmp_path / "run", name, flip)
    check(store.newest(), 2)
    assert store.damaged == []


@pytest.mark.parametrize("name", FILES)
def test_truncated_longer_missing_unreadable(tmp_path: Path, name: str) -> None:
    store, folder = two(tmp_path), tmp_path / "run"
    size = (folder / store.all()[-1] / name).stat().st_size
    for length in (0, 1, size // 2, size - 1):
        reason = damaged(store, folder, name, lambda file, length=length: os.truncate(file, length))
        assert (
            name == "manifest.json" or reason == f"{name} has {length:,} bytes, {size:,} were saved"
        )
    damaged(store, folder, name, lambda file: file.write_bytes(file.read_bytes() + b"\n"))
    assert damaged(store, folder, name, Path.unlink) == f"{name} is missing"

    def as_folder(file: Path) -> None:
        file.unlink()
        file.mkdir()

    assert ("cannot be read" in damaged(store, folder, name, as_folder)) or name != "manifest.json"


def test_files_that_a_manifest_does_not_list_are_ignored(tmp_path: Path) -> None:
    store = two(tmp_path)
    (tmp_path / "run" / store.all()[-1] / "notes.txt").write_text("mine")
    check(store.newest(), 2)
    assert store.damaged == []


def test_another_format_version(tmp_path: Path) -> None:
    """Sealed properly, as docs/checkpoints.md says, and refused by its version."""

    def newer(file: Path) -> None:
        body = json.loads(file.read_text()) | {"version": 2}
        del body["digest"]
        seal(file, body)

    assert (
        damaged(two(tmp_path), tmp_path / "run", "manifest.json", newer)
        == "manifest.json has format version 2, this program reads 1"
    )


def seal(file: Path, body: dict[str, Any]) -> None:
    digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    file.write_text(json.dumps(body | {"digest": digest}, indent=1) + "\n")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", "\xff", '{"version": 1}', '{"version": "1"}']
)
def test_a_manifest_of_something_else(tmp_path: Path, text: str) -> None:
    damaged(
        two(tmp_path),
        tmp_path / "run",
        "manifest.json",
        lambda file: file.write_bytes(text.encode("latin-1")),
    )


def test_everything_damaged(tmp_path: Path) -> None:
    store = two(tmp_path)
    for name in store.all():
        os.truncate(tmp_path / "run" / name / WEIGHTS, 3)
    assert store.newest() is None and [name for name, _ in store.damaged] == store.all()[::-1]


@on_both
def test_damaged_ones_do_not_count_as_kept(kind: str, tmp_path: Path) -> None:
    """Two valid ones stay, whatever damaged ones lie between; these go when they are older than
    both."""
    store = Store(at(kind, tmp_path))
    one, two = put(store, 1), put(store, 2)
    with (tmp_path / Path(two.path).name / WEIGHTS).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    three = put(store, 3)
    names = [Path(saved.path).name for saved in (one, two, three)]
    assert store.all() == names
    four = put(store, 4)
    assert store.all() == [names[2], Path(four.path).name]


def test_damage_after_opening(tmp_path: Path) -> None:
    """Bytes are checked once more as they are loaded, maybe on another machine."""
    saved = put(Store(tmp_path), 1)
    for name in (WEIGHTS, "state.json"):
        file = Path(saved.path) / name
        file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(Damaged, match=r"weights\.safetensors has another sha256"):
        saved.tensors(WEIGHTS)
    with pytest.raises(Damaged, match=r"state\.json has another sha256"):
        saved.state()
    shutil.rmtree(saved.path)
    with pytest.raises(Damaged, match=r"state\.json is missing"):
        saved.state()
