"""The checkpoint store: what goes in comes out, the newest is found, two are kept, on folders and
on URLs."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch

from branchgrpo.checkpoint.store import StaleFence, Store, open_saved
from branchgrpo.errors import UserError

WEIGHTS = "weights.safetensors"


@pytest.fixture(params=["folder", "memory", "local"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder, an object store, and fsspec over real files: the last two know no rename."""
    yield {
        "folder": f"{tmp_path}/checkpoints",
        "memory": "memory://run/checkpoints",
        "local": f"local://{tmp_path}/checkpoints",
    }[request.param]
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def put(store: Store, iteration: int, fence: int = 0) -> str:
    """A small checkpoint; returns its folder's name."""
    return store.save(
        iteration,
        fence,
        {"iteration": iteration},
        {WEIGHTS: {"w": torch.full((3,), float(iteration))}},
    ).path.rpartition("/")[2]


def iterations(store: Store) -> list[int]:
    return [int(name.split("-")[3]) for name in store.all()]


def bits(tensor: torch.Tensor) -> bytes:
    """In C order; -0.0, NaN and bfloat16 compare as bits."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_what_goes_in_comes_out(where: str) -> None:
    generator = torch.Generator().manual_seed(0)
    dtypes = [
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.float64,
        torch.int64,
        torch.uint8,
        torch.bool,
    ]
    tensors = {
        str(dtype): (4 * torch.rand(3, 5, generator=generator)).to(dtype) for dtype in dtypes
    }
    tensors |= {
        "scalar": torch.tensor(-0.0),
        "empty": torch.zeros(0, 4),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
    }
    tensors["nan"] = torch.tensor([math.nan, math.inf])
    state = {
        "rng": [1 << 127, 0],
        "text": "prompt “ü”\n",
        "none": None,
        "deep": {"list": [True, 1, 1.5]},
    }
    store = Store(where)
    saved = store.save(
        7,
        store.claim(),
        state,
        {
            WEIGHTS: tensors,
            "moments-0.safetensors": iter([("m", torch.ones(2))]),
            "nothing.safetensors": {},
        },
    )
    for found in (
        saved,
        store.newest(),
        open_saved(saved.path),
        Store(where).newest(),
        pickle.loads(pickle.dumps(saved)),
    ):
        assert found is not None and (found.iteration, found.fence, found.path, found.created) == (
            7,
            1,
            saved.path,
            saved.created,
        )
        assert set(found.files) == {
            "state.json",
            WEIGHTS,
            "moments-0.safetensors",
            "nothing.safetensors",
        }
        assert found.state() == state
        loaded = found.tensors(WEIGHTS)
        assert loaded.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape, name
            assert bits(loaded[name]) == bits(tensor), name
        assert (
            torch.equal(found.tensors("moments-0.safetensors")["m"], torch.ones(2))
            and found.tensors("nothing.safetensors") == {}
        )
        loaded["scalar"].add_(1)  # what is loaded can be trained
        with pytest.raises(ValueError, match=r"holds state.json, .* not other.safetensors"):
            found.tensors("other.safetensors")
    assert store.damaged == []


def test_manifest(tmp_path: Path) -> None:
    """Digests and sizes by another way than the store's: sha256sum's metrics of the files as they
    lie there."""
    folder = Path(Store(tmp_path).save(3, 2, {"a": 1}, {WEIGHTS: {"w": torch.ones(5)}}).path)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["version"], manifest["iteration"], manifest["fence"]) == (
        1,
        3,
        2,
    ) and manifest["created"].endswith("+00:00")
    files = [path for path in sorted(folder.iterdir()) if path.name != "manifest.json"]
    assert {
        path.name: [hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size]
        for path in files
    } == manifest["files"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name]


def test_tensors_that_cannot_be_written(where: str) -> None:
    store, shared = Store(where), torch.ones(2)
    kept = put(store, 1)
    for tensors, error, words in (
        ({"../up.safetensors": {}}, ValueError, "expected a file name of letters"),
        ({"weights.bin": {}}, ValueError, "ends in .safetensors"),
        (
            {WEIGHTS: [("a", torch.ones(1)), ("a", torch.ones(1))]},
            ValueError,
            "expected each name once, got 2 tensors under 1 names",
        ),
        ({WEIGHTS: {"a": shared, "b": shared}}, RuntimeError, "share memory"),
    ):
        with pytest.raises(error, match=words):
            store.save(2, 0, {}, tensors)  # type: ignore[arg-type]
    assert store.all() == [kept] and store.storage.names() == [kept] and store.newest() is not None


def test_the_newest_two_stay(where: str) -> None:
    store = Store(where)
    assert store.newest() is None and store.all() == [] and store.damaged == []
    for iteration in range(1, 5):
        put(store, iteration)
        assert iterations(store) == list(range(max(1, iteration - 1), iteration + 1))
        found = store.newest()
        assert (
            found is not None
            and found.iteration == iteration
            and torch.equal(found.tensors(WEIGHTS)["w"], torch.full((3,), float(iteration)))
        )
    three = Store(where, keep=3)
    for iteration in (5, 6, 7):
        put(three, iteration)
    assert iterations(three) == [5, 6, 7] and len(three.storage.names()) == 3


def test_a_newer_fence_is_newer_whatever_its_iteration(where: str) -> None:
    """A run that went back to iteration 10 supersedes what lies at 20, in reading and in what is
    deleted."""
    store = Store(where)
    first = store.claim()
    for iteration in (10, 20):
        put(store, iteration, first)
    second = store.claim()
    put(store, 11, second)
    found = store.newest()
    assert (
        found is not None
        and (found.iteration, found.fence) == (11, 2)
        and iterations(store) == [20, 11]
    )
    put(store, 12, second)
    assert iterations(store) == [11, 12]


def test_numbers_beyond_the_padding_sort_as_numbers(where: str) -> None:
    store = Store(where)
    put(store, 99_999_999, 9_999)
    put(store, 100_000_000, 9_999)
    put(store, 1, 10_000)
    assert [(int(name.split("-")[1]), int(name.split("-")[3])) for name in store.all()] == [
        (9_999, 100_000_000),
        (10_000, 1),
    ]


def test_copies_of_one_iteration_are_one_checkpoint(where: str) -> None:
    store = Store(where, keep=2)
    put(store, 1)
    copies = [put(store, 2) for _ in range(3)]
    assert iterations(store) == [1, 2] and store.all()[1] == copies[-1]


def test_fences(where: str) -> None:
    one, other = Store(where), Store(where)
    assert one.fence() == 0
    assert [one.claim(), other.claim(), one.claim()] == [1, 2, 3] and other.fence() == 3
    put(one, 1, 3)
    with pytest.raises(StaleFence, match="fence 2 rejected: fence 3 has been claimed in"):
        put(other, 2, 2)
    assert iterations(one) == [1]


def test_checkpoints_copied_without_their_fences(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for _ in range(3):
        store.claim()
    put(store, 1, 3)
    for path in (tmp_path / "fences").iterdir():
        path.unlink()
    assert store.fence() == 3 and store.claim() == 4


def test_checkpoints_of_an_older_version_are_refused_and_stay(tmp_path: Path) -> None:
    kept = tmp_path / "epoch-0001-iteration-00000002-1-0-1"
    kept.mkdir()
    (tmp_path / "epochs").mkdir()
    with pytest.raises(
        UserError, match=r"^checkpoint\.folder: expected checkpoints of this version"
    ):
        Store(tmp_path)
    assert kept.is_dir() and not (tmp_path / "fences").exists()


def test_file_urls_are_folders(tmp_path: Path) -> None:
    name = put(Store(f"file://{tmp_path}/a"), 4)
    assert (
        Store(tmp_path / "a").all() == [name]
        and open_saved(f"file://{tmp_path}/a/{name}").iteration == 4
    )


def test_a_checkpoint_under_another_name(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / put(store, 4)).rename(tmp_path / "best")
    assert store.newest() is None and open_saved(tmp_path / "best").iteration == 4


def complaint(where: str | Path, keep: int = 2) -> str:
    with pytest.raises(UserError) as caught:
        Store(where, keep)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    assert (
        complaint(file)
        == f"checkpoint.folder: expected a folder that can be written, got {file}: File exists"
    )
    assert complaint(file / "below") == (
        f"checkpoint.folder: expected a folder that can be written, got {file}/below: Not a "
        "directory"
    )
    assert complaint("/proc/checkpoints").startswith(
        "checkpoint.folder: expected a folder that can be written, got /proc/checkpoints: "
    )
    assert complaint("/proc").startswith(
        "checkpoint.folder: expected a folder that can be written, got /proc: "
    )
    assert complaint("nowhere://x/y").startswith(
        "checkpoint.folder: expected a folder or an URL that fsspec can open, got "
        "nowhere://x/y: Protocol not known"
    )
    assert complaint(f"local://{file}").startswith(
        f"checkpoint.folder: expected an URL that can be written, got local://{file}: "
    )
    assert (
        complaint(tmp_path, keep=1)
        == "checkpoint.keep: expected at least 2, got 1: the newest one may turn out to be damaged"
    )


def test_a_protocol_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert complaint("s3://bucket/run").startswith(
        "checkpoint.folder: expected a folder or an URL that fsspec can open, got "
        "s3://bucket/run: Install s3fs"
    )


def test_resume_from_what_is_no_checkpoint(tmp_path: Path) -> None:
    for where in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError) as caught:
            open_saved(where)
        assert (
            str(caught.value)
            == f"--resume: expected a checkpoint in {where}: manifest.json is missing"
        )


def test_importing_needs_neither_torch_nor_fsspec() -> None:
    code = (
        "import sys, branchgrpo.checkpoint.store as c; c.Store(sys.argv[1]); print([n for n "
        "in ('torch', 'fsspec', 'safetensors', 'ray') if n in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, "/tmp"], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
