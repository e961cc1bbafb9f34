"""Model folders that are not whole, not safe or not what was asked for: one line each, before
anything loads."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from branchgrpo.errors import UserError
from branchgrpo.models.files import check_safetensors
from branchgrpo.models.flux import FluxModel

EMBEDDED = FluxModel(path="embedded:tiny-flux").folder()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EMBEDDED, tmp_path / "model"))


def complaint(folder: Path, **options: int) -> str:
    with pytest.raises(UserError) as caught:
        FluxModel(path=str(folder), **{"height": 32, "width": 32} | options).check()
    assert "\n" not in str(caught.value) and str(caught.value).startswith("model.")
    return str(caught.value)


def weights(folder: Path, part: str = "transformer") -> Path:
    return next((folder / part).glob("*.safetensors"))


def edit(path: Path, **keys: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def as_pickle(folder: Path) -> None:
    path = weights(folder)
    path.unlink()
    path.with_suffix(".bin").write_bytes(pickle.dumps({"weight": 1}))


def in_shards(
    folder: Path, second: object = "diffusion_pytorch_model-00002-of-00002.safetensors"
) -> None:
    """An index that names two shards, of which one came."""
    path = weights(folder)
    path.rename(path.with_name("diffusion_pytorch_model-00001-of-00002.safetensors"))
    names = {"a": "diffusion_pytorch_model-00001-of-00002.safetensors", "b": second}
    (path.parent / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": names})
    )


DAMAGE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no index": (
        lambda folder: (folder / "model_index.json").unlink(),
        ["model.path", "model_index.json", "found none at"],
    ),
    "no JSON": (
        lambda folder: (folder / "model_index.json").write_text("{"),
        ["model_index.json", "cannot be read"],
    ),
    "a list": (
        lambda folder: (folder / "model_index.json").write_text("[]"),
        ["model_index.json", "expected a JSON object", "list"],
    ),
    "another pipeline": (
        lambda folder: edit(folder / "model_index.json", _class_name="WanPipeline"),
        ["expected a FluxPipeline folder, got WanPipeline"],
    ),
    "another transformer": (
        lambda folder: edit(
            folder / "transformer" / "config.json", _class_name="SD3Transformer2DModel"
        ),
        ["expected a FluxTransformer2DModel in", "got SD3Transformer2DModel"],
    ),
    "no part": (
        lambda folder: shutil.rmtree(folder / "text_encoder_2"),
        ["text_encoder_2", "T5EncoderModel", "missing"],
    ),
    "no config": (
        lambda folder: (folder / "vae" / "config.json").unlink(),
        ["vae", "config.json", "missing"],
    ),
    "no weights": (
        lambda folder: weights(folder).unlink(),
        ["expected *.safetensors in", "transformer", "got none"],
    ),
    "a pickle": (as_pickle, ["expected *.safetensors in", "transformer", ".bin, a pickle"]),
    "a missing shard": (in_shards, ["00002-of-00002.safetensors", "missing", "download"]),
    "a shard elsewhere": (
        lambda folder: in_shards(folder, "../vae/config.json"),
        ["index.json", "names of other folders"],
    ),
    "a shard by number": (
        lambda folder: in_shards(folder, 2),
        ["index.json", "names of other folders"],
    ),
    "half a file": (
        lambda folder: weights(folder, "vae").write_bytes(
            weights(folder, "vae").read_bytes()[:-1000]
        ),
        ["bytes in", "vae", "download complete"],
    ),
    "a cut header": (
        lambda folder: weights(folder).write_bytes(weights(folder).read_bytes()[:20]),
        ["expected a safetensors file", "truncated"],
    ),
    "an empty file": (
        lambda folder: weights(folder, "text_encoder").write_bytes(b""),
        ["expected a safetensors file", "empty"],
    ),
    "no tokenizer": (
        lambda folder: [path.unlink() for path in (folder / "tokenizer").iterdir()],
        ["tokenizer files", "found none"],
    ),
    "no scheduler": (
        lambda folder: (folder / "scheduler" / "scheduler_config.json").unlink(),
        ["scheduler_config.json", "missing"],
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_one_line_names_the_file(folder: Path, what: str) -> None:
    act, words = DAMAGE[what]
    act(folder)
    found = complaint(folder)
    for word in words:
        assert word in found


def test_sizes_must_fit_the_latents(folder: Path) -> None:
    assert (
        complaint(folder, height=36)
        == "model.height, model.width: expected multiples of 8, got 36×32"
    )


def test_what_is_whole_passes(folder: Path) -> None:
    FluxModel(path=str(folder), height=40, width=24).check()
    for path in folder.rglob("*.safetensors"):
        check_safetensors("key", path)
