"""Checkpoint writers that are killed, and storage that is full or fails.

Each fault is injected at the nth operation of a save, for every n until a save gets through:
creating, writing (half of it arrives), syncing, renaming, deleting.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from support import small_checkpoints
from support.small_checkpoints import (
    RANK,
    WEIGHTS,
    at,
    check,
    in_child,
    instrument,
    killed_at,
    leavings,
    on_both,
    put,
    readable,
    two,
)

from branchgrpo.checkpoint.store import Store
from branchgrpo.errors import UserError


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that it has written; that files are synced is a test of its
    own."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(autouse=True, params=["whole", "shards"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Files of whole tensors, or what torch.distributed.checkpoint has ranks write."""
    found: str = request.param
    monkeypatch.setattr(small_checkpoints, "SHARDS", found == "shards")
    return found


@on_both
def test_writer_killed_at_every_operation(kind: str, tmp_path: Path) -> None:
    """The older ones can be read, the newest is whole or absent, what it left goes with the next
    save.

    Where a put is not atomic, as on fsspec's local files, half a manifest may remain: it is passed
    over, and named.
    """
    template = tmp_path / "template"
    folder = tmp_path / "run"
    outcomes = []
    torn = 0
    assert (
        in_child(lambda: [put(Store(at(kind, template)), iteration) for iteration in (1, 2)]) == 0
    )
    for n in count():
        shutil.copytree(template, folder)
        store = Store(at(kind, folder))
        status = killed_at(n, lambda store=store: put(store, 3))
        assert status in (0, 9)
        found = readable(store, torn=kind == "local")
        assert found in ([1, 2], [1, 2, 3], [2, 3]), (n, found)
        check(store.newest(), found[-1])
        torn += len(store.damaged)
        put(store, 4)
        check(store.newest(), 4)
        assert leavings(folder) == []
        put(store, 5)
        assert readable(store) == [4, 5] and leavings(folder) == []
        outcomes.append(found)
        shutil.rmtree(folder)
        if status == 0:
            break
    assert (
        n > 10
        and [1, 2] in outcomes
        and [1, 2, 3] in outcomes
        and found == [2, 3]
        and torn == (kind == "local")
    )


@on_both
def test_first_writer_killed(kind: str, tmp_path: Path) -> None:
    """Nothing older to go back to: none, or the whole one."""
    for n in count():
        folder = tmp_path / str(n)
        store = Store(at(kind, folder))
        status = killed_at(n, lambda store=store: put(store, 1))
        found = readable(store, torn=kind == "local")
        assert found in ([], [1])
        check(put(store, 2), 2)
        assert leavings(folder) == []
        if status == 0:
            break
    assert n > 5 and found == [1]


@on_both
def test_claimer_killed(kind: str, tmp_path: Path) -> None:
    for n in count():
        store = Store(at(kind, tmp_path / str(n)))
        assert store.claim() == 1
        status = killed_at(n, store.claim)
        newest = store.fence()
        assert newest in (1, 2) and store.claim() == newest + 1
        if status == 0:
            break
    assert n > 1 and newest == 2


def test_everything_is_synced_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """Power may fail after any call: files, then their folder, then the rename, then the parent;
    deleting comes last."""
    store = two(tmp_path)
    done: list[tuple[str, str]] = []
    sync = os.fsync
    rename = os.rename
    unlink = os.unlink

    def record(call: str, name: Any, act: Callable[..., None], *args: Any, **keys: Any) -> None:
        done.append((call, Path(name).name))
        act(*args, **keys)

    monkeypatch.setattr(
        os,
        "fsync",
        lambda handle: record("sync", os.readlink(f"/proc/self/fd/{handle}"), sync, handle),
    )
    monkeypatch.setattr(os, "rename", lambda old, new: record("rename", new, rename, old, new))
    monkeypatch.setattr(
        os, "unlink", lambda path, **keys: record("unlink", path, unlink, path, **keys)
    )
    oldest, name = store.all()[0], Path(put(store, 3).path).name
    written = {"whole": ["state.json", WEIGHTS], "shards": [RANK, "state.json"]}[form]
    files = [("sync", file) for file in (*written, "manifest.json")]
    assert done[:6] == [*files, ("sync", f".draft-{name}"), ("rename", name), ("sync", "run")]
    assert done[6] == ("rename", f".draft-{oldest}") and {call for call, _ in done[7:]} == {
        "unlink"
    }


def test_storage_that_cannot_sync_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EINVAL is how some network file systems say so; any other error of a sync is one."""
    store = two(tmp_path)

    def refuse(handle: int, number: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{handle}")).is_dir():
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", lambda handle: refuse(handle, errno.EINVAL))
    put(store, 3)
    monkeypatch.setattr(os, "fsync", lambda handle: refuse(handle, errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        put(store, 4)
    assert readable(store) == [2, 3] and leavings(tmp_path / "run") == []


@on_both
def test_disk_full_at_every_operation(kind: str, tmp_path: Path) -> None:
    """ENOSPC injected: an OSError, the older ones whole, nothing left behind; the next save is as
    if nothing had been."""
    folder = tmp_path / "run"
    store = Store(at(kind, folder))
    for iteration in (1, 2):
        put(store, iteration)
    for n in count():
        seen, full = count(), False

        def point(name: str, n: int = n, seen: Iterator[int] = seen) -> None:
            nonlocal full
            if name not in ("unlink", "rmdir", "remove") and next(seen) == n:
                full = True
                raise OSError(errno.ENOSPC, "No space left on device")

        with pytest.MonkeyPatch.context() as patch:
            instrument(patch, point)
            try:
                put(store, 3)
            except OSError as error:
                assert full and error.errno == errno.ENOSPC
        found = readable(store)
        assert leavings(folder) == [] and store.damaged == []
        if 3 in found:
            break
        assert found == [1, 2]
    assert n > 6
    put(store, 4)
    assert readable(store) == [3, 4]


@on_both
def test_disk_full_for_real(kind: str, tmp_path: Path) -> None:
    """A tmpfs of 1 MB. Where nothing can be mounted, a limit on file sizes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True
        ).returncode
        == 0
    )

    def fill() -> None:
        store = Store(at(kind, folder))
        for iteration in (1, 2):
            put(store, iteration)
        for _ in range(3):
            with pytest.raises(OSError) as caught:
                put(store, 3, size=1 << 20)
            assert caught.value.errno == (errno.ENOSPC if mounted else errno.EFBIG)
            assert readable(store) == [1, 2] and leavings(folder) == []
            check(store.newest(), 2)
        put(store, 4)
        assert readable(store) == [2, 4]

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        fill()

    try:
        if mounted:
            fill()
        else:
            assert in_child(limited) == 0
    finally:
        if mounted:
            subprocess.run(["umount", "-l", folder], check=True)


@on_both
def test_file_size_limit(kind: str, tmp_path: Path) -> None:
    """What `ulimit -f` and quotas give: EFBIG, in the middle of a file."""

    def limited() -> None:
        store = Store(at(kind, tmp_path / "run"))
        put(store, 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        with pytest.raises(OSError) as caught:
            put(store, 2, size=1 << 20)
        assert caught.value.errno == errno.EFBIG
        assert readable(store) == [1] and leavings(tmp_path / "run") == []

    assert in_child(limited) == 0


class Flaky(MemoryFileSystem):
    """An object store whose package has error classes of its own, as those of S3 have."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    left = 1_000

    class Error(Exception):
        """No OSError."""

    def pipe_file(self, *args: Any, **keys: Any) -> None:
        self._spend()
        super().pipe_file(*args, **keys)

    def _open(self, path: str, mode: str = "rb", **keys: Any) -> Any:
        if mode == "wb" and "data" not in keys:  # else it is a put
            self._spend()
        return super()._open(path, mode, **keys)

    def _spend(self) -> None:
        if not Flaky.left:
            raise self.Error("no\nconnection")
        Flaky.left -= 1


def test_object_store_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """At every put: an OSError whatever the package raises, nothing left behind; at start-up one
    line."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(Flaky, "store", {})
    monkeypatch.setattr(Flaky, "pseudo_dirs", [""])
    store = Store("flaky://run")
    kept = Path(put(store, 1).path).name
    for n in range(3):
        monkeypatch.setattr(Flaky, "left", n)
        with pytest.raises(OSError, match=r"^(pipe_file|open) .*Error: no connection$"):
            put(store, 2)
        assert store.storage.names() == [kept]
    with pytest.raises(
        UserError,
        match=r"^checkpoint\.folder: expected an URL that can be written, got flaky://run: "
        r".*Error: no connection$",
    ):
        Store("flaky://run")
    monkeypatch.setattr(Flaky, "left", 3)
    put(store, 2)
    check(store.newest(), 2)
