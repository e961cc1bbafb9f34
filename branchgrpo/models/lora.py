"""LoRA files: adapters W + alpha / rank · B·A of a denoiser's layers, written for readers of
tensors alone, and read back.

Read are the names of diffusers (`transformer.LAYER.lora_A.weight`), of peft
(`base_model.model.LAYER.…`), and of kohya (`lora_unet_LAYER.lora_down.weight`, or
`lora_transformer_`, LAYER's dots as underscores), for layers as diffusers calls them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from branchgrpo.errors import UserError
from branchgrpo.files.regular import opened
from branchgrpo.files.safetensors_header import BadHeader, Entry, Header, header

if TYPE_CHECKING:
    from torch import Tensor, nn

KEY = "model.lora_path"
FILE = "pytorch_lora_weights.safetensors"

_TENSOR = re.compile(r"(.+)\.(?:lora_(A|B)(?:\.default)?\.weight|lora_(down|up)\.weight|(alpha))")
_DOTTED, _FLAT = ("base_model.model.", "transformer."), ("lora_unet_", "lora_transformer_")
_NUMBERS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class LoraFile:
    """What a file's header says of its adapters."""

    path: Path
    tensors: Mapping[tuple[str, str], str]  # (layer, A or B) → name in the file


def file_of(part: str) -> str:
    """The file in which an exported adapter of this part of a pipeline is."""
    stem, dot, ending = FILE.partition(".")
    return f"{stem}{part.removeprefix('transformer')}{dot}{ending}"


def layers(folder: Path, targets: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Shapes [out, in] of a denoiser's layers that peft adapts for these names, from the headers of
    its files."""
    ends = tuple(targets)
    found = {
        name.removesuffix(".weight"): entry.shape
        for path in sorted(folder.glob("*.safetensors"))
        for name, entry in header(path).tensors.items()
        if name.endswith(".weight") and len(entry.shape) == 2
    }
    return {
        name: shape
        for name, shape in found.items()
        if name in ends or name.endswith(tuple(f".{end}" for end in ends))
    }


def check(where: str, wanted: Mapping[str, tuple[int, ...]], rank: int, alpha: float) -> LoraFile:
    """An adapter of exactly these layers, of this rank and alpha. Raises UserError that names key
    and file; reads no weights."""
    path = _find(Path(where).expanduser())
    try:
        head = header(path)
    except (BadHeader, OSError) as error:
        raise UserError(
            f"{KEY}: expected a LoRA file in safetensors, {path} "
            f"{error if isinstance(error, BadHeader) else 'cannot be read'}"
        ) from error
    flat = {name.replace(".", "_"): name for name in wanted}
    tensors = {}
    alphas = {}
    for name, entry in head.tensors.items():
        match = _TENSOR.fullmatch(name)
        if not match:
            raise UserError(
                f"{KEY}: expected adapters (lora_A and lora_B, or lora_down, lora_up and "
                f"alpha) in {path}, got {name}"
            )
        layer = _layer(match[1], flat)
        if layer not in wanted:
            raise UserError(
                f"model.lora_targets: expected those of {path}, which adapts {layer}; got "
                "names that leave it out, or it is no layer of the model"
            )
        part = {"down": "A", "up": "B"}.get(match[3], match[2])
        if part:
            tensors[layer, part] = name
        else:
            alphas[layer] = entry
    lacking = sorted({(layer, part) for layer in wanted for part in "AB"} - tensors.keys())
    if lacking:
        raise UserError(
            f"model.lora_targets: expected those of {path}, which has no adapter of "
            f"{lacking[0][0]} ({len(lacking)} of {2 * len(wanted)} are missing)"
        )
    for (layer, part), name in tensors.items():
        _check_shape(
            path,
            layer=layer,
            part=part,
            got=head.tensors[name].shape,
            whole=wanted[layer],
            rank=rank,
        )
    for layer, found in _alphas(path, head, alphas, rank).items():
        if found != alpha:
            raise UserError(
                f"model.lora_alpha: expected {found:g}, the alpha of "
                f"{path}{f' at {layer}' if layer else ''}, got {alpha:g}"
            )
    return LoraFile(path, tensors)


def load(module: nn.Module, file: LoraFile) -> None:
    """Overwrite the module's adapters by the file's."""
    import torch
    from safetensors.torch import load_file

    values = load_file(file.path)
    with torch.no_grad():
        for (layer, part), name in file.tensors.items():
            module.get_parameter(f"{layer}.lora_{part}.default.weight").copy_(values[name])


def save(path: Path, module: nn.Module, alphas: bool) -> None:
    """Write the module's adapters to a file, so that alpha = rank: their scale is in B, and whoever
    reads A and B alone has all.

    alphas: with tensors `LAYER.alpha` as well, for readers that would take another value for
    granted.
    """
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = cast(Any, module).peft_config["default"]
    rank = int(config.r)
    scale = config.lora_alpha / rank
    found: dict[str, Tensor] = {}
    for name, value in get_peft_model_state_dict(module).items():
        found[f"transformer.{name}"] = (
            (value.float() * (scale if ".lora_B." in name else 1.0)).contiguous().cpu()
        )
        if alphas and ".lora_A." in name:
            found[f"transformer.{name.partition('.lora_A.')[0]}.alpha"] = torch.tensor(float(rank))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(found, path, metadata={"format": "pt"})


def _find(path: Path) -> Path:
    """The one safetensors file of a folder, or the file itself."""
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        raise UserError(
            f"{KEY}: expected one *.safetensors in {path}, got "
            f"{', '.join(one.name for one in found) or 'none'}"
        )
    return found[0]


def _layer(name: str, flat: Mapping[str, str]) -> str:
    """The layer's name in the denoiser; one that is none is given as it is."""
    for prefix in _FLAT:
        if name.startswith(prefix):
            return flat.get(name.removeprefix(prefix).replace(".", "_"), name)
    for prefix in _DOTTED:
        name = name.removeprefix(prefix)
    return name


def _check_shape(
    path: Path, layer: str, part: str, got: tuple[int, ...], whole: tuple[int, ...], rank: int
) -> None:
    side = 0 if part == "A" else -1
    found = got[side] if got else 0
    if found != rank and len(got) == 2:
        raise UserError(
            f"model.lora_rank: expected {found}, the rank of {path} at {layer}, got {rank}"
        )
    expected = (rank, whole[1]) if part == "A" else (whole[0], rank)
    if got != expected:
        raise UserError(
            f"{KEY}: expected shape {list(expected)} of {layer}'s {part} in {path}, got {list(got)}"
        )


def _alphas(path: Path, head: Header, tensors: Mapping[str, Entry], rank: int) -> dict[str, float]:
    """Alpha by layer, or one for all under "": from tensors, else from what is said of the file,
    else the rank."""
    if tensors:
        start = os.stat(path).st_size - max(entry.end for entry in head.tensors.values())
        with opened(path) as file:
            return {
                layer: _number(path, layer=layer, entry=entry, start=start, file=file)
                for layer, entry in tensors.items()
            }
    told: dict[str, Any] = {}
    try:
        # diffusers: peft's config, each key after the part's name
        if "lora_adapter_metadata" in head.metadata:
            told = {
                key.removeprefix("transformer."): value
                for key, value in json.loads(head.metadata["lora_adapter_metadata"]).items()
            }
        elif (path.parent / "adapter_config.json").is_file():  # peft
            told = json.loads((path.parent / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{KEY}: expected peft's config beside {path} to be a JSON object, it cannot be "
            f"read: {error}"
        ) from error
    strange = [
        key for key in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern") if told.get(key)
    ]
    if strange:
        raise UserError(
            f"{KEY}: expected plain adapters of one rank and alpha in {path}, got "
            f"{', '.join(strange)}"
        )
    return {"": float(told.get("lora_alpha", rank))}


def _number(path: Path, layer: str, entry: Entry, start: int, file: Any) -> float:
    """One alpha, which is data: the header has but its place."""
    if entry.numbers != 1 or entry.dtype not in _NUMBERS:
        raise UserError(
            f"{KEY}: expected one number as alpha of {layer} in {path}, got {entry.dtype} "
            f"{list(entry.shape)}"
        )
    file.seek(start + entry.begin)
    value = np.frombuffer(file.read(entry.end - entry.begin), _NUMBERS[entry.dtype])
    return float(
        (value.astype(np.uint32) << 16).view(np.float32)[0] if entry.dtype == "BF16" else value[0]
    )
