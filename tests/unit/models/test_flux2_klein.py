"""FLUX.2-klein against diffusers' own pipeline, on a small random folder."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from support import model_checks as checks
from support import model_folder_checks as folder_checks

from branchgrpo.models.flux2_klein import Flux2KleinModel, empirical_mu
from branchgrpo.models.small.flux2_klein import small_flux2_klein

pytestmark = pytest.mark.networks

JOINT = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> checks.Family:
    return checks.Family(
        partial(Flux2KleinModel),
        small_flux2_klein(tmp_path_factory.mktemp("klein")),
        "guidance_scale",
    )


@pytest.mark.parametrize("steps", [4, 7])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 24)])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_the_ode_path_is_diffusers_pipeline(
    family: checks.Family, height: int, width: int, scale: float, steps: int
) -> None:
    checks.draws_the_pipelines_pictures(family, height, width, scale, negative="", steps=steps)


def test_a_distilled_folder_is_drawn_without_guidance(
    family: checks.Family, tmp_path: Path
) -> None:
    """Its stock pipeline takes no notice of guidance, whatever the scale."""
    distilled = replace(family, folder=small_flux2_klein(tmp_path / "distilled", distilled=True))
    checks.draws_the_pipelines_pictures(distilled, 32, 32, 1.0)
    distilled.make().check()
    folder_checks.refused(distilled.make(true_cfg=4.0), "model.true_cfg: expected 1, since")


def test_the_shift_follows_the_fits_at_10_and_200_steps() -> None:
    """Of a picture of 1024² pixels, 4096 tokens: 2.2562 and 1.1500; on a line between them and
    beyond. A larger one has the second fit alone."""
    few, many = 8.73809524e-05 * 4096 + 1.89833333, 0.00016927 * 4096 + 0.45666666
    for steps, wanted in ((10, few), (200, many), (105, (few + many) / 2), (50, 2.0234)):
        assert empirical_mu(4096, steps) == pytest.approx(wanted, abs=1e-4)
    assert empirical_mu(4301, 4) == empirical_mu(4301, 50) == pytest.approx(1.1847, abs=1e-4)


def test_a_static_scheduler_is_drawn_with_as_well(family: checks.Family, tmp_path: Path) -> None:
    folder = tmp_path / "static"
    shutil.copytree(family.folder, folder)
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_dynamic_shifting": False}))
    static = replace(family, folder=folder)
    assert not np.array_equal(static.make().schedule(4).levels, family.make().schedule(4).levels)
    checks.draws_the_pipelines_pictures(static, 32, 32, 1.0)


def test_text_and_the_negative_text_matter(family: checks.Family) -> None:
    checks.text_matters(family)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_rows_are_independent(family: checks.Family, scale: float) -> None:
    checks.rows_are_independent(family, scale)


def test_guided_velocity_is_that_of_two_plain_calls(family: checks.Family) -> None:
    checks.guidance_is_two_plain_calls(
        family, lambda wanted, unwanted: unwanted + checks.SCALE * (wanted - unwanted)
    )


def test_adapters_sit_in_attention(family: checks.Family) -> None:
    double = {
        f"transformer_blocks.{block}.attn.{layer}"
        for block, layer in itertools.product(range(2), JOINT)
    }
    single = {
        f"single_transformer_blocks.{block}.attn.{layer}"
        for block, layer in itertools.product(range(2), ("to_qkv_mlp_proj", "to_out"))
    }
    checks.adapters_sit_in(family, double | single)


@pytest.mark.parametrize("rank", [0, 2])
def test_exports_draw_the_policys_picture(family: checks.Family, rank: int, tmp_path: Path) -> None:
    folder_checks.exports_draw_the_policys_picture(family, rank, tmp_path)


def test_only_the_wanted_parts_are_loaded(family: checks.Family) -> None:
    folder_checks.only_the_wanted_parts_are_loaded(family)


@pytest.mark.parametrize("rank", [0, 2])
def test_checkpointing_keeps_the_gradient(family: checks.Family, rank: int) -> None:
    checks.checkpointing_keeps_the_gradient(family, rank)


def test_long_prompts_are_counted(family: checks.Family) -> None:
    # the template has 3 tokens before the text and 11 after
    checks.long_prompts_are_counted(family, " circle" * 10, " circle" * 11)


def test_texts_are_filled_up(family: checks.Family) -> None:
    model = family.build(("encoders",))
    text = model.texts(["a circle"])["text"]
    assert model.tokenize(["a circle"])[0][0] < 24 == text.shape[1]
    assert text[:, -1].any()  # the denoiser reads what fills it up


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_probes_have_the_texts_shapes(family: checks.Family, scale: float) -> None:
    checks.probes_have_the_texts_shapes(family, scale)


def test_bfloat16_is_near(family: checks.Family) -> None:
    checks.bfloat16_is_near(family)


def test_an_embedding_of_guidance_is_left_alone(family: checks.Family, tmp_path: Path) -> None:
    """The pipeline gives it nothing, and so it does not train."""
    from diffusers import Flux2Transformer2DModel

    folder = tmp_path / "embeds"
    shutil.copytree(family.folder, folder)
    config = json.loads((folder / "transformer" / "config.json").read_text())
    torch.manual_seed(0)
    Flux2Transformer2DModel.from_config(config | {"guidance_embeds": True}).save_pretrained(
        folder / "transformer"
    )
    model = replace(family, folder=folder).build(("denoiser",))
    idle = dict(model.denoiser.named_parameters()).keys() - model.trainable().keys()
    assert len(idle) == 2 and all(".guidance_embedder." in name for name in idle)
    loss = model.velocity(*checks.inputs(model, 2), model.fingerprint_conditioning(2)).square()
    gradients = torch.autograd.grad(loss.mean(), list(model.trainable().values()))
    assert all(one.isfinite().all() for one in gradients)


def test_blocks_are_compiled(family: checks.Family, monkeypatch: pytest.MonkeyPatch) -> None:
    checks.blocks_are_compiled(family, monkeypatch)


def test_tokens_and_shapes(family: checks.Family) -> None:
    model = family.build(("denoiser",), height=48, width=24)
    assert model.latent_shape == (16, 6, 3)
    assert model.tokens(model.fingerprint_conditioning(2)) == 6 * 3 + 8
    assert model.blocks_of(model.denoiser) == [
        *model.denoiser.transformer_blocks,
        *model.denoiser.single_transformer_blocks,
    ]


def test_bad_folders_sizes_and_options_are_one_line(family: checks.Family, tmp_path: Path) -> None:
    folder_checks.folders_are_checked(family, tmp_path)
    folder_checks.refused(family.make(height=36), "expected multiples of 8, got 36×32")
    folder_checks.refused(
        family.make(negative_prompt="a red circle"), "model.negative_prompt: expected it empty"
    )
