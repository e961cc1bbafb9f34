"""Are a model's files all there, whole and safe to read? Asked before any process loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from branchgrpo.errors import UserError
from branchgrpo.files.regular import read_json
from branchgrpo.files.safetensors_header import BadHeader, header

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_TOKENIZER = 256 << 20
"""Bytes of a JSON file of a model, at most: tokenizers of many languages have 30 MB."""
_INDEX = ".safetensors.index.json"
_TOKENIZER = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model", "vocab.txt")


def json_file(key: str, path: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError, naming the config key, for a file that is missing or is
    none."""
    try:
        found = read_json(path, MAX_TOKENIZER)
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        why = "is missing" if missing else f"cannot be read: {error}"
        raise UserError(f"{key}: expected {path}, which {why}") from error
    if not isinstance(found, dict):
        raise UserError(f"{key}: expected a JSON object in {path}, got {type(found).__name__}")
    return found


def check_pipeline(key: str, folder: Path, *pipelines: str) -> dict[str, Any]:
    """A folder that one of these classes of diffusers wrote, with every part whole; returns
    model_index.json.

    Raises UserError, naming the config key and the file.
    """
    index = json_file(key, folder / "model_index.json")
    if index.get("_class_name") not in pipelines:
        raise UserError(
            f"{key}: expected a {' or '.join(pipelines)} folder, got {index.get('_class_name')} "
            f"at {folder}"
        )
    for part, named in index.items():
        if isinstance(named, list) and len(named) == 2 and named[1] is not None:
            check_part(key, folder / part, str(named[1]))
    return index


def check_part(key: str, folder: Path, name: str) -> None:
    """One part of a pipeline, of the class `name`."""
    if not folder.is_dir():
        raise UserError(f"{key}: expected {folder} ({name}), which is missing")
    if "Scheduler" in name:
        json_file(key, folder / "scheduler_config.json")
    elif name.endswith("Guidance"):
        json_file(key, folder / "guider_config.json")
    elif name == "ByT5Tokenizer":  # of bytes: it has no vocabulary
        json_file(key, folder / "tokenizer_config.json")
    elif "Tokenizer" in name or "Processor" in name:
        if not any(
            (folder / file).is_file()
            for file in (*_TOKENIZER, "preprocessor_config.json", "processor_config.json")
        ):
            raise UserError(
                f"{key}: expected tokenizer files ({', '.join(_TOKENIZER)}) in {folder}, found none"
            )
        for path in sorted(folder.glob("*.json")):
            json_file(key, path)
    else:
        json_file(key, folder / "config.json")
        check_weights(key, folder)


def check_weights(key: str, folder: Path) -> None:
    """Weights of one model: safetensors, all shards there and whole.

    Raises UserError for a missing shard, a truncated one, and for a folder that holds nothing but
    pickles: loading one can run any code.
    """
    for index in sorted(folder.glob(f"*{_INDEX}")):
        shards = json_file(key, index).get("weight_map")
        if not isinstance(shards, dict) or not all(
            isinstance(shard, str) and Path(shard).name == shard for shard in shards.values()
        ):
            got = "names of other folders" if isinstance(shards, dict) else type(shards).__name__
            raise UserError(
                f"{key}: expected a weight_map to files beside it in {index}, got {got}"
            )
        for shard in sorted(set(shards.values())):
            if not (folder / shard).is_file():
                raise UserError(
                    f"{key}: expected {folder / shard}, which {index.name} names and which "
                    "is missing: is the download complete?"
                )
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        got = f"{pickles[0]}, a pickle, which can run code when it is loaded" if pickles else "none"
        raise UserError(f"{key}: expected *.safetensors in {folder}, got {got}")
    whole = ("model.safetensors", "diffusion_pytorch_model.safetensors")
    if not any(folder.glob(f"*{_INDEX}")) and not any((folder / name).is_file() for name in whole):
        raise UserError(
            f"{key}: expected {' or '.join(whole)}, or an index of shards, in {folder}, got "
            f"{found[0].name}: is the download complete?"
        )
    for path in found:
        check_safetensors(key, path)


def check_safetensors(key: str, path: Path) -> None:
    """A whole safetensors file, by its header. Raises UserError where it isn't one."""
    try:
        header(path)
    except BadHeader as error:
        raise UserError(f"{key}: expected a safetensors file, {path} {error}") from error
    except OSError as error:
        raise UserError(
            f"{key}: expected a safetensors file, {path} cannot be read: {error.strerror}"
        ) from error
