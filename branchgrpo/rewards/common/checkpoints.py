"""Checkpoints of rewards: found, read safely, and fitted to their networks tensor by tensor."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from branchgrpo.errors import UserError
from branchgrpo.files.regular import opened
from branchgrpo.models.files import check_safetensors
from branchgrpo.rewards.base import existing

if TYPE_CHECKING:
    from torch import Tensor, nn

_PROCESSOR = ("preprocessor_config.json", "processor_config.json")
_TOKENIZER = ("tokenizer.json", "vocab.json")


def given(key: str, path: str, what: str) -> Path:
    """The file or folder at `path`. Raises UserError where the path is empty or leads nowhere."""
    if not path:
        raise UserError(f"{key}: expected {what}, got an empty path")
    return existing(key, path, what)


def check_checkpoint(key: str, path: Path) -> None:
    """A file of weights: safetensors, or what torch.save writes. Raises UserError for one that is
    truncated or something else."""
    if path.suffix == ".safetensors":
        check_safetensors(key, path)
        return
    try:
        with opened(path) as file:
            start = file.read(2)
    except OSError as error:
        raise UserError(f"{key}: expected a file, {path}: {error.strerror}") from error
    if start == b"PK" and not zipfile.is_zipfile(path):
        raise UserError(
            f"{key}: expected a torch checkpoint, {path} is truncated: is the download complete?"
        )
    if start != b"PK" and not start.startswith(b"\x80"):
        raise UserError(f"{key}: expected a torch checkpoint, {path} is none")


def check_processor(key: str, path: str, tokenizer: bool) -> Path:
    """A folder with the files of CLIP's image processor and, where wanted, its tokenizer. Raises
    UserError where they are missing."""
    folder = given(key, path, "the folder of a transformers CLIPProcessor")
    for files in (_PROCESSOR, _TOKENIZER) if tokenizer else (_PROCESSOR,):
        if not any((folder / file).is_file() for file in files):
            raise UserError(f"{key}: expected {' or '.join(files)} in {folder}, found neither")
    return folder


def read_state(key: str, path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint by name, from under `state_dict` where it has that, without the
    prefix of a parallel wrapper.

    Raises UserError for a file that is not whole, and for a pickle that holds more than tensors and
    plain containers.
    """
    import pickle

    import torch
    from safetensors.torch import load_file

    check_checkpoint(key, path)
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(
            f"{key}: expected tensors alone in {path}, which torch.load with weights_only "
            f"refuses ({type(error).__name__})"
        ) from error
    state = found.get("state_dict", found) if isinstance(found, dict) else None
    if (
        not state
        or not isinstance(state, dict)
        or not all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    ):
        raise UserError(f"{key}: expected a state dict in {path}, got {type(found).__name__}")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def fit(key: str, path: Path, module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load all of `state` into all of `module`. Raises UserError, with expected and got, where
    names or shapes differ."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    got = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = [name for name in wanted | got if wanted.get(name) != got.get(name)]
    if wrong:
        raise UserError(
            difference(
                key,
                path=path,
                name=wrong[0],
                wanted=wanted.get(wrong[0]),
                got=got.get(wrong[0]),
                count=len(wrong),
            )
        )
    module.load_state_dict(state)


def network(
    key: str,
    path: Path,
    kind: Any,
    config: Any,
    state: Mapping[str, Tensor],
    dtype: str,
    **arguments: Any,
) -> Any:
    """A transformers network of class `kind` with exactly these weights, for inference.

    Raises UserError, naming the config key, when a tensor is missing, left over or of another
    shape.
    """
    import torch

    with torch.device("meta"):
        wanted = {
            name: tuple(value.shape)
            for name, value in kind(config, **arguments).state_dict().items()
        }
    got = {name: tuple(value.shape) for name, value in state.items()}
    wrong = sorted(name for name in wanted.keys() | got.keys() if wanted.get(name) != got.get(name))
    if wrong:
        first = (
            f"expected {wrong[0]} {wanted.get(wrong[0], 'nowhere')}, got "
            f"{got.get(wrong[0], 'none')}"
        )
        raise UserError(
            f"{key}: {path} does not fit {kind.__name__}: {first} ({len(wrong)} of "
            f"{len(wanted)} tensors differ)"
        )
    loaded = kind.from_pretrained(
        None, config=config, state_dict=dict(state), dtype=getattr(torch, dtype), **arguments
    )
    return loaded.eval().requires_grad_(False)


def difference(key: str, path: Path, name: str, wanted: object, got: object, count: int) -> str:
    """One line for the first of `count` tensors that do not fit; None stands for no such tensor."""
    expected, found = (
        "no tensor" if shape is None else f"shape {shape}" for shape in (wanted, got)
    )
    return (
        f"{key}: expected {expected} {name}, got {found} in {path}; {count} tensors differ: "
        "weights of another architecture?"
    )
