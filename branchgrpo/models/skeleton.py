"""Models without weights: shapes and dtypes on torch's meta device, from the config.json of each
part. What a run needs is counted on them before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from branchgrpo.errors import UserError, one_line
from branchgrpo.files.safetensors_header import BadHeader, header
from branchgrpo.models.files import json_file

if TYPE_CHECKING:
    import torch

PUBLISHED = Path(__file__).parents[1] / "assets" / "published"
"""Sizes of published models, as their config.json files have them: folders without weights."""


def published() -> list[str]:
    """Names of the models whose sizes are known without their files."""
    return sorted(folder.name for folder in PUBLISHED.iterdir())


def folder_of_sizes(path: str) -> Path:
    """The model's folder, where it is there; else the published sizes of the model that the last
    part of `path` names. Raises UserError for neither."""
    folder = Path(path).expanduser()
    if (folder / "model_index.json").is_file():
        return folder
    known = PUBLISHED / PurePath(path).name.partition("@")[0]
    if not known.is_dir():
        raise UserError(
            f"model.path: expected a diffusers folder with model_index.json, or a last part among "
            f"{', '.join(published())}, whose sizes are known, got {path}"
        )
    return known


@contextmanager
def silent() -> Iterator[None]:
    """diffusers says nothing of its progress: there is nothing to wait for."""
    from diffusers.utils import logging

    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def hollow(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A network of diffusers or transformers on the meta device, in the dtypes that its weights
    would be loaded in. Raises UserError where its config.json does not fit the class."""
    import torch

    try:
        with torch.device("meta"):
            if hasattr(kind, "config_class") and kind.config_class is not None:
                made = kind(kind.config_class.from_pretrained(folder))
            else:
                made = kind.from_config(kind.load_config(folder))
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"model.path: {folder} does not fit {kind.__name__}: {one_line(error)}"
        ) from error
    exact = tuple(getattr(made, "_keep_in_fp32_modules", None) or ())
    for name, value in made.named_parameters():
        if value.is_floating_point():
            wide = any(part in exact for part in name.split("."))
            value.data = value.data.to(torch.float32 if wide else dtype)
    return made


def numbers(kind: Any, folder: Path) -> int:
    """Parameters of a network: from the headers of its files, else from its config.json."""
    import torch

    files = sorted(folder.glob("*.safetensors"))
    try:
        if files:
            return sum(one.numbers for path in files for one in header(path).tensors.values())
    except (BadHeader, OSError) as error:
        raise UserError(f"model.path: {folder} {one_line(error)}") from error
    return sum(value.numel() for value in hollow(kind, folder, torch.float32).parameters())


def text_parameters(folder: Path, parts: Iterable[str]) -> int:
    """Parameters of those parts of a pipeline that are text encoders."""
    index = json_file("model.path", folder / "model_index.json")
    there = [part for part in parts if (index.get(part) or [None])[-1]]
    return sum(
        numbers(class_named(index[part]), folder / part)
        for part in there
        if is_network(index[part])
    )


def is_network(entry: list[str]) -> bool:
    """Has a part weights, as model_index.json names it? Tokenizers and processors of pictures have
    none."""
    return not any(kind in entry[1] for kind in ("Tokenizer", "Processor"))


def class_named(entry: list[str]) -> Any:
    """The class of a part, as model_index.json names it. Raises UserError for one that the
    installed packages lack."""
    library, name = entry
    found = (
        getattr(import_module(library), name, None)
        if library in ("diffusers", "transformers")
        else None
    )
    if found is None:
        raise UserError(
            "model.path: expected a class of diffusers or transformers in "
            f"model_index.json, got {library}.{name}"
        )
    return found
