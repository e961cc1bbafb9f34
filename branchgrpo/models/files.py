"""Are a model's files all there, whole and safe to read? Asked before any process loads them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from branchgrpo.errors import UserError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_INDEX = ".safetensors.index.json"
_TOKENIZER = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model", "vocab.txt")


def json_file(key: str, path: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError, naming the config key, for a file that is missing or is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: expected {path}, which {'is missing' if isinstance(error, FileNotFoundError) else f'cannot be read: {error}'}") from error
    if not isinstance(found, dict):
        raise UserError(f"{key}: expected a JSON object in {path}, got {type(found).__name__}")
    return found


def check_pipeline(key: str, folder: Path, pipeline: str) -> dict[str, Any]:
    """A folder that diffusers' class `pipeline` wrote, with every part whole; returns model_index.json.

    Raises UserError, naming the config key and the file.
    """
    index = json_file(key, folder / "model_index.json")
    if index.get("_class_name") != pipeline:
        raise UserError(f"{key}: expected a {pipeline} folder, got {index.get('_class_name')} at {folder}")
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
    elif "Tokenizer" in name or "Processor" in name:
        if not any((folder / file).is_file() for file in (*_TOKENIZER, "preprocessor_config.json", "processor_config.json")):
            raise UserError(f"{key}: expected tokenizer files ({', '.join(_TOKENIZER)}) in {folder}, found none")
        for path in sorted(folder.glob("*.json")):
            json_file(key, path)
    else:
        json_file(key, folder / "config.json")
        check_weights(key, folder)


def check_weights(key: str, folder: Path) -> None:
    """Weights of one model: safetensors, all shards there and whole.

    Raises UserError for a missing shard, a truncated one, and for a folder that holds nothing but pickles: loading
    one can run any code.
    """
    for index in sorted(folder.glob(f"*{_INDEX}")):
        shards = json_file(key, index).get("weight_map")
        if not isinstance(shards, dict):
            raise UserError(f"{key}: expected a weight_map by name in {index}, got {type(shards).__name__}")
        for shard in sorted(set(shards.values())):
            if not (folder / shard).is_file():
                raise UserError(f"{key}: expected {folder / shard}, which {index.name} names and which is missing: is the download complete?")
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        got = f"{pickles[0]}, a pickle, which can run code when it is loaded" if pickles else "none"
        raise UserError(f"{key}: expected *.safetensors in {folder}, got {got}")
    whole = ("model.safetensors", "diffusion_pytorch_model.safetensors")
    if not any(folder.glob(f"*{_INDEX}")) and not any((folder / name).is_file() for name in whole):
        raise UserError(f"{key}: expected {' or '.join(whole)}, or an index of shards, in {folder}, got {found[0].name}: is the download complete?")
    for path in found:
        check_safetensors(key, path)


def check_safetensors(key: str, path: Path) -> None:
    """The file holds as many bytes as its header says. Raises UserError where it doesn't."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length + 8 > size:
            raise UserError(f"{key}: expected a safetensors file, {path} is {'empty' if not size else 'truncated or something else'}")
        try:
            header = json.loads(file.read(length))
            end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{key}: expected a safetensors file, the header of {path} cannot be read") from error
    if size != length + 8 + end:
        raise UserError(f"{key}: expected {length + 8 + end:,} bytes in {path}, got {size:,}: is the download complete?")
