"""Small checkpoints, and faults injected at the nth operation of a writer."""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from fsspec.implementations.local import LocalFileSystem

from branchgrpo.checkpoint import storage as checkpoint_storage
from branchgrpo.checkpoint.shards import file_of, whole_tensors
from branchgrpo.checkpoint.store import Saved, Store, open_saved
from branchgrpo.errors import UserError
from branchgrpo.learner.saved_shards import Content, save

WEIGHTS = "weights.safetensors"
Point = Callable[[str], None]
on_both = pytest.mark.parametrize("kind", ["folder", "local"])
"""With rename; fsspec over real files, without."""


def at(kind: str, folder: Path) -> str:
    return f"local://{folder}" if kind == "local" else str(folder)


SHARDS = False
"""Does `put` write in shards, as one rank? A fixture may say so."""

RANK = file_of(0, 1)
"""Its file."""


def numbers(iteration: int, size: int) -> torch.Tensor:
    return torch.arange(size, dtype=torch.float64) * iteration


def put(store: Store, iteration: int, fence: int = 0, size: int = 40) -> Saved:
    state, w = {"iteration": iteration}, numbers(iteration, size)
    if not SHARDS:
        return store.save(iteration, fence, state, {WEIGHTS: {"w": w}})
    saved = save(store, Content(iteration, fence, state, {}), {"weights/w": w}, None)
    assert saved
    return saved


def two(tmp_path: Path) -> Store:
    store = Store(tmp_path / "run")
    put(store, 1)
    put(store, 2)
    return store


def check(saved: Saved | None, iteration: int, size: int = 40) -> None:
    assert (
        saved is not None
        and saved.iteration == iteration
        and saved.state() == {"iteration": iteration}
    )
    assert torch.equal(whole_tensors(saved, "weights")["w"], numbers(iteration, size))


def readable(store: Store, torn: bool = False) -> list[int]:
    """Iterations of all checkpoints, each read with the right contents. `torn`: the newest may have
    half a manifest."""
    found = []
    for name in store.all():
        try:
            saved = open_saved(f"{store.storage.where}/{name}")
        except UserError as error:
            assert torn and name == store.all()[-1] and "manifest.json is not JSON" in str(error)
            continue
        check(saved, saved.iteration)
        found.append(saved.iteration)
    return found


def leavings(folder: Path) -> list[str]:
    """What lies in the folder beside checkpoints with a manifest."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if not (path / "manifest.json").is_file() or path.name.startswith(".")
    )


def instrument(monkeypatch: pytest.MonkeyPatch, point: Point) -> None:
    """Ask `point` before every operation on the disk, and in the middle of every write."""

    def before(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def ask(*args: Any, **keys: Any) -> Any:
            point(name)
            return real(*args, **keys)

        monkeypatch.setattr(owner, name, ask)

    def tearing(path: Any, mode: str) -> IO[bytes]:
        point("open")
        file = builtins.open(path, mode)
        write = file.write

        class Torn:
            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def write(self, data: bytes) -> None:
                write(data[: len(data) // 2])
                file.flush()
                point("write")
                write(data[len(data) // 2 :])

            def __getattr__(self, name: str) -> Any:
                return getattr(file, name)

        return Torn()

    def pipe_file(self: Any, path: str, value: bytes, mode: str = "overwrite") -> None:
        with tearing(path, "wb" if mode == "overwrite" else "xb") as file:
            file.write(value)

    monkeypatch.setattr(checkpoint_storage, "open", tearing, raising=False)
    monkeypatch.setattr(LocalFileSystem, "pipe_file", pipe_file)
    reading = LocalFileSystem._open

    def opening(self: Any, path: str, mode: str = "rb", **keys: Any) -> Any:
        return tearing(path, mode) if mode == "wb" else reading(self, path, mode, **keys)

    monkeypatch.setattr(LocalFileSystem, "_open", opening)
    for name in ("fsync", "rename", "mkdir", "unlink", "rmdir", "remove"):
        before(os, name)


# A forked process has none of OpenMP's threads, and would wait for them.
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def in_child(act: Callable[[], object]) -> int:
    """Exit status of a forked process that calls `act`: 0, 1 for an exception, or what os._exit
    got."""
    pid = os.fork()
    if not pid:
        try:
            act()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at(n: int, act: Callable[[], object]) -> int:
    """9 when the process that calls `act` died before its nth operation, 0 when it has fewer."""

    def run() -> None:
        seen = count()
        with pytest.MonkeyPatch.context() as patch:
            instrument(patch, lambda name: os._exit(9) if next(seen) == n else None)
            act()

    return in_child(run)
