"""What a VideoReward checkpoint holds: configs, weights, and LoRA weights merged into them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from branchgrpo.errors import UserError
from branchgrpo.models.files import check_weights, json_file
from branchgrpo.rewards.common.checkpoints import check_checkpoint, read_state
from branchgrpo.rewards.common.qwen2_vl import own_names

if TYPE_CHECKING:
    from torch import Tensor

KEY = "rewards.video_align"


# mean, std of the published checkpoint
NORMAL = {"vq": (3.6757, 2.2476), "mq": (1.1646, 1.3811), "ta": (2.8105, 2.5121)}


def weights_file(folder: Path) -> Path:
    """The folder itself where it holds merged weights, else its model.pth. Raises UserError where
    there is neither, or files are not whole."""
    adapters = [
        path
        for place in (folder, *folder.glob("checkpoint-*"))
        for path in place.glob("adapter_model.*")
    ]
    if any(path not in adapters for path in folder.glob("*.safetensors")):
        check_weights(f"{KEY}.path", folder)
        return folder
    steps = sorted(
        folder.glob("checkpoint-[0-9]*/model.pth"),
        key=lambda path: int(path.parent.name.rpartition("-")[2]),
    )
    for path in (folder / "model.pth", *reversed(steps)):
        if path.is_file():
            check_checkpoint(f"{KEY}.path", path)
            return path
    got = f"the adapters {adapters[0]} alone: merge them first" if adapters else "none"
    raise UserError(f"{KEY}.path: expected *.safetensors or model.pth in {folder}, got {got}")


def model_config(folder: Path) -> dict[str, Any]:
    """VideoAlign's model_config.json in the folder or the one above; empty where there is none."""
    for place in (folder, folder.parent):
        if (place / "model_config.json").is_file():
            return json_file(f"{KEY}.path", place / "model_config.json")
    return {}


def weights(folder: Path, training: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors by Qwen2VLModel's names, and rm_head.weight; LoRA merged, the language head left
    out."""
    found = weights_file(folder)
    if found.is_dir():
        from safetensors.torch import load_file

        files = [
            path
            for path in sorted(folder.glob("*.safetensors"))
            if not path.name.startswith("adapter_model")
        ]
        state = {name: value for path in files for name, value in load_file(path).items()}
    else:
        state = merged(found, read_state(f"{KEY}.path", found), training)
    return own_names(state)


def merged(path: Path, state: dict[str, Tensor], training: dict[str, Any]) -> dict[str, Tensor]:
    """peft's names without its prefixes, and W + s·BA for each adapted W; s = alpha / rank, or
    alpha / √rank (rslora)."""
    state = {name.removeprefix("base_model.model."): value for name, value in state.items()}
    modules = [
        name.removesuffix(".lora_A.default.weight")
        for name in state
        if name.endswith(".lora_A.default.weight")
    ]
    lora = training.get("peft_lora_config", {})
    if modules and "lora_alpha" not in lora:
        raise UserError(
            f"{KEY}.path: expected peft_lora_config.lora_alpha in a model_config.json near "
            f"{path}, which holds LoRA weights; found none"
        )
    for module in modules:
        names = [
            f"{module}.{part}.weight" for part in ("lora_A.default", "lora_B.default", "base_layer")
        ]
        if not state.keys() >= set(names):
            raise UserError(
                f"{KEY}.path: expected {', '.join(names)} in {path}, which lacks some of them"
            )
        a, b, w = (state.pop(name).float() for name in names)
        scale = lora["lora_alpha"] / (len(a) ** 0.5 if lora.get("use_rslora") else len(a))
        state[names[2]] = w + scale * (b @ a)
    return {name.replace(".base_layer.", "."): value for name, value in state.items()}


def normal(training: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """(mean, std) of vq, mq and ta: the checkpoint's, or the published ones where it names none."""
    found = training.get("inference_config") or {}
    return {
        name: (found.get(f"{name.upper()}_mean", mean), found.get(f"{name.upper()}_std", std))
        for name, (mean, std) in NORMAL.items()
    }
