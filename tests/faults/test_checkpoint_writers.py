"""Several writers of checkpoints: zombies of old fences, leavings of the dead, two at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch
from support.small_checkpoints import WEIGHTS, at, check, leavings, on_both, put, readable

from branchgrpo.checkpoint import storage as checkpoint_storage
from branchgrpo.checkpoint.store import StaleFence, Store


@pytest.fixture(params=["folder", "local", "memory"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield "memory://zombies" if request.param == "memory" else at(request.param, tmp_path / "run")
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def test_a_zombie_that_comes_back(where: str) -> None:
    zombie, heir = Store(where), Store(where)
    fence = zombie.claim()
    put(zombie, 1, fence)
    heir.claim()
    before = sorted(zombie.storage.names())

    def never() -> Iterator[tuple[str, torch.Tensor]]:
        raise AssertionError("a zombie's tensors must not be asked for")
        yield

    with pytest.raises(StaleFence, match="fence 1 rejected: fence 2 has been claimed in"):
        zombie.save(2, fence, {}, {WEIGHTS: never()})
    assert sorted(zombie.storage.names()) == before
    check(heir.newest(), 1)


@pytest.mark.parametrize("sweeps", [False, True])
def test_a_zombie_superseded_while_it_writes(where: str, sweeps: bool) -> None:
    """A fence is claimed between two files; the heir may even have swept the draft away."""
    zombie, heir = Store(where), Store(where)
    fence = zombie.claim()
    put(zombie, 1, fence)

    def claimed_meanwhile() -> Iterator[tuple[str, torch.Tensor]]:
        yield "w", torch.ones(2)
        heir.claim()
        if sweeps:
            put(heir, 2, 2)

    with pytest.raises(StaleFence):
        zombie.save(
            2,
            fence,
            {},
            {"a.safetensors": {}, "b.safetensors": claimed_meanwhile(), "c.safetensors": {}},
        )
    assert sorted(heir.storage.names()) == sorted(
        [*heir.all(), "fences"]
    ) and heir.storage.drafts() in ([], ["fences"])
    check(heir.newest(), 2 if sweeps else 1)


def test_a_zombie_superseded_directly_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The draft is complete and synced, manifest and all; it must not become a checkpoint."""
    zombie, heir = Store(tmp_path), Store(tmp_path)
    fence = zombie.claim()
    sync = checkpoint_storage.Local.sync
    claimed = []

    def late(self: checkpoint_storage.Local) -> None:
        sync(self)
        if self.root.name.startswith(".draft-"):
            assert {path.name for path in self.root.iterdir()} == {
                "manifest.json",
                "state.json",
                WEIGHTS,
            }
            claimed.append(heir.claim())

    monkeypatch.setattr(checkpoint_storage.Local, "sync", late)
    with pytest.raises(StaleFence):
        put(zombie, 1, fence)
    assert claimed == [2] and [path.name for path in tmp_path.iterdir()] == ["fences"]


@on_both
def test_drafts_of_living_writers_stay(kind: str, tmp_path: Path) -> None:
    """Of this fence those of the dead go, of older fences all; what a person put there stays."""
    store, folder = Store(at(kind, tmp_path)), tmp_path
    fence = store.claim()
    saved = put(store, 1, fence)
    for _ in range(2):
        fence = store.claim()
    parts = Path(saved.path).name.split("-")
    dead = os.fork()
    if not dead:
        os._exit(0)
    os.waitpid(dead, 0)
    drafts = {
        f"fence-{of:04d}-iteration-00000009-1-{host}-{pid}": stays
        for of, host, pid, stays in [
            (fence, parts[5], os.getpid(), True),
            (fence, parts[5], 1, True),
            (fence, parts[5], dead, False),
            (fence, "00000000", dead, True),
            (fence - 1, parts[5], os.getpid(), False),
            (fence - 1, "00000000", 1, False),
        ]
    }
    prefix = ".draft-" if kind == "folder" else ""
    for name in drafts:
        (folder / (prefix + name)).mkdir()
        (folder / (prefix + name) / "state.json").write_text("{")
    (folder / "notes").mkdir()
    put(store, 2, fence)
    assert leavings(folder) == sorted(
        ["fences", "notes", *(prefix + name for name, stays in drafts.items() if stays)]
    )


@on_both
def test_two_writers_of_the_same_iterations(kind: str, tmp_path: Path) -> None:
    """Both get through, nothing is damaged, and the two newest iterations are there."""
    url, last = at(kind, tmp_path / "run"), 12
    pids = []
    for _ in range(2):
        pid = os.fork()
        if not pid:
            try:
                store = Store(url)
                for iteration in range(1, last + 1):
                    put(store, iteration)
            except BaseException:
                os._exit(1)
            os._exit(0)
        pids.append(pid)
    reader, seen = Store(url), 0
    while pids:
        found = reader.newest()
        assert found is None or found.iteration >= seen
        seen = found.iteration if found else 0
        pids = [pid for pid in pids if os.waitpid(pid, os.WNOHANG) == (0, 0)]
    assert set(readable(reader)) == {last - 1, last}
    check(reader.newest(), last)
    assert reader.damaged == []


@on_both
def test_claims_at_once_are_all_different(kind: str, tmp_path: Path) -> None:
    url, each = at(kind, tmp_path / "run"), 20
    children = []
    for index in range(3):
        pid = os.fork()
        if not pid:
            store = Store(url)
            (tmp_path / f"claims-{index}").write_text(
                " ".join(str(store.claim()) for _ in range(each))
            )
            os._exit(0)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0, 0]
    claimed = [
        int(text)
        for index in range(3)
        for text in (tmp_path / f"claims-{index}").read_text().split()
    ]
    assert len(set(claimed)) == 3 * each
    if kind == "folder":  # of an URL, all may give up a number that several want
        assert sorted(claimed) == list(range(1, 3 * each + 1))


def test_claims_that_cross(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process claims between this one's look at what is claimed and its own claim."""
    one, other = Store(where), Store(where)
    ask, crossed = one.fence, list[int]()

    def late() -> int:
        found = ask()
        if not crossed:
            crossed.append(other.claim())
        return found

    monkeypatch.setattr(one, "fence", late)
    assert (one.claim(), crossed, ask()) == (2, [1], 2)
