"""LoRA files: what is exported is read by tensors alone, and every spelling of names is where
training can begin."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import model_checks as checks
from support import model_folder_checks as folder_checks
from torch import Tensor

from branchgrpo.errors import UserError
from branchgrpo.models.flux import FluxModel
from branchgrpo.models.flux2_klein import Flux2KleinModel
from branchgrpo.models.pipeline import PipelineAdapter
from branchgrpo.models.qwen_image import QwenImageModel
from branchgrpo.models.sd3 import SD3Model
from branchgrpo.models.small.flux2_klein import small_flux2_klein
from branchgrpo.models.small.qwen_image import small_qwen_image
from branchgrpo.models.small.sd3 import small_sd3
from branchgrpo.models.small.z_image import small_z_image
from branchgrpo.models.z_image import ZImageModel

pytestmark = pytest.mark.networks

# acts three times as strong as a reader thinks that takes alpha for the rank
LORA = {"lora_rank": 4, "lora_alpha": 12}


@pytest.fixture(scope="module", params=["flux", "sd3", "qwen_image", "flux2_klein", "z_image"])
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> checks.Family:
    if request.param == "flux":
        return checks.Family(
            FluxModel, FluxModel(path="embedded:tiny-flux").folder(), "true_cfg_scale", text=16
        )
    options, write, guidance = {
        "sd3": (SD3Model, small_sd3, "guidance_scale"),
        "qwen_image": (QwenImageModel, small_qwen_image, "true_cfg_scale"),
        "flux2_klein": (Flux2KleinModel, small_flux2_klein, "guidance_scale"),
        "z_image": (ZImageModel, small_z_image, "guidance_scale"),
    }[request.param]
    return checks.Family(partial(options), write(tmp_path_factory.mktemp(request.param)), guidance)


@pytest.fixture
def flux() -> checks.Family:
    return checks.Family(
        FluxModel, FluxModel(path="embedded:tiny-flux").folder(), "true_cfg_scale", text=16
    )


def speed(model: PipelineAdapter) -> Tensor:
    x, sigma = checks.inputs(model, 2)
    return checks.velocity(model, x, sigma, model.fingerprint_conditioning(2))


def trained(
    family: checks.Family, folder: Path, **keys: Any
) -> tuple[PipelineAdapter, dict[str, Tensor]]:
    """A model whose adapters do something, and the tensors of what it exports."""
    model = family.build(("denoiser",), **LORA | keys)
    base = speed(model)
    checks.move(model)
    assert float((speed(model) - base).norm()) > 0.01 * float(base.norm())
    model.save(folder, family.folder, "lora")
    return model, load_file(folder / "pytorch_lora_weights.safetensors")


def test_tensors_alone_give_the_trained_velocity(family: checks.Family, tmp_path: Path) -> None:
    """A reader that knows A, B and alpha (the rank where there is none), and no header: W + alpha /
    rank · B·A."""
    model, tensors = trained(family, tmp_path)
    plain = family.build(("denoiser",))
    layers = {
        name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")
    }
    with torch.no_grad():
        for layer in layers:
            a, b = tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"]
            alpha = tensors.get(f"{layer}.alpha", torch.tensor(float(len(a))))
            plain.denoiser.get_parameter(f"{layer.removeprefix('transformer.')}.weight").add_(
                alpha / len(a) * b @ a
            )
    wanted = speed(model)
    assert float((speed(plain) - wanted).norm()) <= 1e-6 * float(wanted.norm())
    assert any(name.endswith(".alpha") for name in tensors) == model.options.lora_alphas


def test_diffusers_reads_the_tensors_alone(family: checks.Family, tmp_path: Path) -> None:
    model, tensors = trained(family, tmp_path)
    pipe = family.stock()
    pipe.load_lora_weights(dict(tensors))
    plain = family.build(("denoiser",))
    plain.denoiser = pipe.transformer
    wanted = speed(model)
    assert float((speed(plain) - wanted).norm()) <= 1e-6 * float(wanted.norm())


def spelt(tensors: dict[str, Tensor], style: str) -> dict[str, Tensor]:
    """The same adapters under other names."""
    plain = {
        name.removeprefix("transformer."): value
        for name, value in tensors.items()
        if not name.endswith(".alpha")
    }
    if style == "transformer":
        return {f"transformer.{name}": value for name, value in plain.items()}
    if style == "peft":
        return {f"base_model.model.{name}": value for name, value in plain.items()}
    if style == "peft, named":
        return {
            f"base_model.model.{name.replace('.weight', '.default.weight')}": value
            for name, value in plain.items()
        }
    found = {}
    for name, value in plain.items():
        layer, _, part = name.partition(".lora_")
        key = f"{style}{layer.replace('.', '_')}"
        found[f"{key}.lora_{'down' if part.startswith('A') else 'up'}.weight"] = value
        found[f"{key}.alpha"] = torch.tensor(4.0, dtype=torch.bfloat16)
    return found


@pytest.mark.parametrize(
    "style", ["transformer", "peft", "peft, named", "lora_unet_", "lora_transformer_"]
)
def test_training_begins_at_an_adapter(flux: checks.Family, tmp_path: Path, style: str) -> None:
    model, tensors = trained(flux, tmp_path / "own")
    save_file(spelt(tensors, style), tmp_path / "lora.safetensors")
    options = {"lora_rank": 4, "lora_alpha": 4, "lora_path": str(tmp_path / "lora.safetensors")}
    flux.make(**options).check()
    found, wanted = flux.build(("denoiser",), **options), speed(model)
    assert float((speed(found) - wanted).norm()) <= 1e-6 * float(wanted.norm())
    assert found.trainable().keys() == model.trainable().keys()
    x, sigma = checks.inputs(found, 2)
    cond = found.fingerprint_conditioning(2)
    # the KL is to the plain base
    assert torch.equal(found.base_velocity(x, sigma, cond), speed(flux.build(("denoiser",))))


def test_every_familys_own_export_is_where_training_can_begin(
    family: checks.Family, tmp_path: Path
) -> None:
    model, _ = trained(family, tmp_path)
    options = {"lora_rank": 4, "lora_alpha": 4, "lora_path": str(tmp_path)}
    family.make(**options).check()
    wanted = speed(model)
    assert float((speed(family.build(("denoiser",), **options)) - wanted).norm()) <= 1e-6 * float(
        wanted.norm()
    )


def test_alpha_is_read_from_tensors_the_header_and_pefts_config(
    flux: checks.Family, tmp_path: Path
) -> None:
    _, tensors = trained(flux, tmp_path / "own")
    bare, kohya = spelt(tensors, "transformer"), spelt(tensors, "lora_unet_")
    save_file(
        bare,
        tmp_path / "header.safetensors",
        {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 7, "transformer.r": 4})},
    )
    save_file(
        {
            name: torch.tensor(7.0) if name.endswith(".alpha") else value
            for name, value in kohya.items()
        },
        tmp_path / "tensors.safetensors",
    )
    (tmp_path / "peft").mkdir()
    save_file(spelt(tensors, "peft"), tmp_path / "peft" / "adapter_model.safetensors")
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 7}))
    for where in ("header.safetensors", "tensors.safetensors", "peft"):
        flux.make(lora_rank=4, lora_alpha=7, lora_path=str(tmp_path / where)).check()
        folder_checks.refused(
            flux.make(lora_rank=4, lora_alpha=4, lora_path=str(tmp_path / where)),
            "model.lora_alpha: expected 7, the alpha of",
        )
    (tmp_path / "peft" / "adapter_config.json").write_text(
        json.dumps({"r": 4, "lora_alpha": 7, "use_rslora": True})
    )
    folder_checks.refused(
        flux.make(lora_rank=4, lora_alpha=7, lora_path=str(tmp_path / "peft")), "got use_rslora"
    )


def test_what_does_not_fit_is_one_line_before_anything_starts(
    flux: checks.Family, tmp_path: Path
) -> None:
    _, tensors = trained(flux, tmp_path / "own")
    fits = {"lora_rank": 4, "lora_alpha": 4, "lora_path": str(tmp_path / "own")}
    flux.make(**fits).check()
    file = tmp_path / "own" / "pytorch_lora_weights.safetensors"
    folder_checks.refused(
        flux.make(**fits | {"lora_rank": 8}), f"model.lora_rank: expected 4, the rank of {file}"
    )
    folder_checks.refused(
        flux.make(**fits | {"lora_rank": 0}), "model.lora_rank: expected 4, the rank of"
    )
    folder_checks.refused(
        flux.make(**fits | {"lora_alpha": 0}), f"model.lora_alpha: expected 4, the alpha of {file}"
    )
    folder_checks.refused(
        flux.make(**fits | {"lora_targets": ("to_q",)}), "model.lora_targets: expected those of"
    )
    folder_checks.refused(
        flux.make(**fits | {"lora_targets": (*FluxModel.attention_layers, "proj_mlp")}),
        "has no adapter of single_transformer_blocks",
    )
    folder_checks.refused(
        flux.make(**fits | {"lora_path": str(tmp_path / "absent")}),
        f"{tmp_path / 'absent'} cannot be read",
    )
    folder_checks.refused(
        flux.make(**fits | {"lora_path": str(tmp_path)}),
        f"expected one *.safetensors in {tmp_path}, got none",
    )
    shutil.copy(
        flux.folder / "transformer" / "diffusion_pytorch_model.safetensors",
        tmp_path / "whole.safetensors",
    )
    folder_checks.refused(
        flux.make(**fits | {"lora_path": str(tmp_path / "whole.safetensors")}),
        "expected adapters (lora_A and lora_B",
    )
    strange = {
        name.replace("transformer.transformer_blocks.0", "transformer.transformer_blocks.9"): value
        for name, value in tensors.items()
    }
    save_file(strange, tmp_path / "strange.safetensors")
    folder_checks.refused(
        flux.make(**fits | {"lora_path": str(tmp_path / "strange.safetensors")}),
        "no layer of the model",
    )
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:-4])
    folder_checks.refused(
        flux.make(**fits | {"lora_path": str(tmp_path / "cut.safetensors")}),
        "expected a LoRA file in safetensors",
    )
    with pytest.raises(UserError):
        flux.build(("denoiser",), **fits | {"lora_alpha": 5})
