"""Qwen-Image against diffusers' own pipeline, on a small random folder."""

from __future__ import annotations

import itertools
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from support import model_checks as checks
from support import model_folder_checks as folder_checks
from torch import Tensor

from branchgrpo.models.qwen_image import QwenImageModel
from branchgrpo.models.small.qwen_image import small_qwen_image

pytestmark = pytest.mark.networks

JOINT = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> checks.Family:
    return checks.Family(
        partial(QwenImageModel),
        small_qwen_image(tmp_path_factory.mktemp("qwen-image")),
        "true_cfg_scale",
    )


def test_the_small_tokenizer_reads_the_pipelines_instruction_as_the_real_one(
    family: checks.Family,
) -> None:
    pipe = family.build(("encoders",)).pipe
    assert (
        len(pipe.tokenizer(pipe.prompt_template_encode.split("{}")[0])["input_ids"])
        == pipe.prompt_template_encode_start_idx
        == 34
    )


@pytest.mark.parametrize("steps", [4, 7])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 24)])
@pytest.mark.parametrize(("scale", "negative"), [(1.0, " "), (4.0, " "), (2.5, checks.NEGATIVE)])
def test_the_ode_path_is_diffusers_pipeline(
    family: checks.Family, height: int, width: int, scale: float, negative: str, steps: int
) -> None:
    checks.draws_the_pipelines_pictures(
        family, height=height, width=width, scale=scale, negative=negative, steps=steps
    )


def test_text_and_the_negative_text_matter(family: checks.Family) -> None:
    checks.text_matters(family)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_rows_are_independent(family: checks.Family, scale: float) -> None:
    checks.rows_are_independent(family, scale)


def test_guided_velocity_is_that_of_two_plain_calls_and_as_long_as_the_wanted_one(
    family: checks.Family,
) -> None:
    def combined(wanted: Tensor, unwanted: Tensor) -> Tensor:
        both = unwanted + checks.SCALE * (wanted - unwanted)
        return (
            both
            / both.square().sum(2, keepdim=True).sqrt()
            * wanted.square().sum(2, keepdim=True).sqrt()
        )

    checks.guidance_is_two_plain_calls(family, combined)


def test_adapters_sit_in_the_attention_that_is_read(family: checks.Family) -> None:
    joint = {
        f"transformer_blocks.{block}.attn.{layer}"
        for block, layer in itertools.product(range(2), JOINT)
    }
    checks.adapters_sit_in(family, joint - {"transformer_blocks.1.attn.to_add_out"})


def test_what_is_not_trained_does_not_reach_the_velocity(family: checks.Family) -> None:
    model = family.build(("denoiser",))
    x, sigma = checks.inputs(model, 2)
    cond = model.fingerprint_conditioning(2)
    before = checks.velocity(model, x, sigma, cond)
    idle = {
        name: value for name, value in model.denoiser.named_parameters() if not value.requires_grad
    }
    assert (
        len(idle) == 6
        and model.trainable().keys() == dict(model.denoiser.named_parameters()).keys() - idle.keys()
    )
    with torch.no_grad():
        for value in idle.values():
            value.add_(1.0)
    assert torch.equal(checks.velocity(model, x, sigma, cond), before)


@pytest.mark.parametrize("rank", [0, 2])
def test_exports_draw_the_policys_picture(family: checks.Family, rank: int, tmp_path: Path) -> None:
    folder_checks.exports_draw_the_policys_picture(family, rank, tmp_path)


def test_only_the_wanted_parts_are_loaded(family: checks.Family) -> None:
    folder_checks.only_the_wanted_parts_are_loaded(family)


@pytest.mark.parametrize("rank", [0, 2])
def test_checkpointing_keeps_the_gradient(family: checks.Family, rank: int) -> None:
    checks.checkpointing_keeps_the_gradient(family, rank)


def test_long_prompts_are_counted(family: checks.Family) -> None:
    # the pipeline's template ends a text with five tokens
    checks.long_prompts_are_counted(family, " circle" * 19, " circle" * 20)


def test_padding_is_zero_and_masked(family: checks.Family) -> None:
    model = family.build(("encoders",))
    text = model.texts(checks.PROMPTS)
    lengths = model.tokenize(checks.PROMPTS)[0]
    assert text["text"].shape == (2, max(lengths), 32) and lengths[0] > lengths[1]
    assert (
        text["mask"].sum(1).tolist() == lengths
        and not text["text"][1, lengths[1] :].any()
        and text["text"][1, lengths[1] - 1].any()
    )


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_probes_have_the_texts_shapes(family: checks.Family, scale: float) -> None:
    checks.probes_have_the_texts_shapes(family, scale)


def test_bfloat16_is_near(family: checks.Family) -> None:
    checks.bfloat16_is_near(family)


def test_blocks_are_compiled(family: checks.Family, monkeypatch: pytest.MonkeyPatch) -> None:
    checks.blocks_are_compiled(family, monkeypatch)


def test_tokens_and_shapes(family: checks.Family) -> None:
    model = family.build(("denoiser",), height=48, width=24)
    assert model.latent_shape == (18, 16)
    assert model.tokens(model.fingerprint_conditioning(2)) == 18 + 8
    assert model.blocks_of(model.denoiser) == list(model.denoiser.transformer_blocks)


def test_bad_folders_sizes_and_options_are_one_line(family: checks.Family, tmp_path: Path) -> None:
    folder_checks.folders_are_checked(family, tmp_path)
    folder_checks.refused(family.make(height=36), "expected multiples of 8, got 36×32")
    folder_checks.refused(
        family.make(attention="flash"), "model.attention: expected one that takes a mask"
    )
    family.make(attention="native").check()
    shutil.copytree(family.folder, tmp_path / "distilled")
    config = tmp_path / "distilled" / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"guidance_embeds": True}))
    folder_checks.refused(
        family.make(path=str(tmp_path / "distilled")),
        "expected a QwenImageTransformer2DModel without guidance_embeds",
    )
