"""Models of the Hub, in a cache as the Hub's own client lays it out. No network is asked."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest
from support.small_trees import quickstart

from branchgrpo.errors import UserError
from branchgrpo.models import places
from branchgrpo.models.flux import FluxModel
from branchgrpo.runs.identity import identity

ASSET = Path(places.__file__).parents[1] / "assets" / "tiny-flux"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One with the model acme/tiny: blobs, and links to them."""
    root = tmp_path / "models--acme--tiny"
    (root / "refs").mkdir(parents=True)
    (root / "blobs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(sorted(path for path in ASSET.rglob("*") if path.is_file())):
        blob, link = root / "blobs" / str(number), root / "snapshots" / COMMIT
        blob.write_bytes(file.read_bytes())
        link = link / file.relative_to(ASSET)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.mark.parametrize("path", ["acme/tiny", "acme/tiny@main", f"acme/tiny@{COMMIT}"])
def test_a_name_is_found_in_the_cache(cache: Path, path: str) -> None:
    model = FluxModel(path=path, height=32, width=32)
    assert model.folder() == cache / "models--acme--tiny" / "snapshots" / COMMIT
    model.check()
    assert model.needed_files() == []  # every node has a cache of its own
    found = identity(quickstart({"model.path": path}))
    assert found["model.path"] == path
    assert found["model.files"] == identity(quickstart())["model.files"]


def test_a_name_that_is_not_there_is_refused_in_one_line(cache: Path) -> None:
    with pytest.raises(UserError) as caught:
        FluxModel(path="acme/other").check()
    assert str(caught.value).startswith("model.path: expected a folder, or a model of the Hub")
    assert f"in the cache {cache}" in str(caught.value) and "acme/other" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("black-forest-labs/FLUX.1-dev", True),
        ("a/b@v1.0", True),
        ("/models/FLUX.1-dev", False),
        ("models", False),
        ("a/b/c", False),
        ("./a/b", False),
        ("~/a", False),
        ("embedded:tiny-flux", False),
    ],
)
def test_what_is_a_name(path: str, named: bool) -> None:
    assert places.on_hub(path) is named


def test_a_folder_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not places.on_hub("acme/tiny")
