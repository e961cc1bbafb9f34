"""Stable Diffusion 3.5 against diffusers' own pipeline, on a small random folder."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

import pytest
from support import model_checks as checks
from support import model_folder_checks as folder_checks
from support.records import records

from branchgrpo.models.sd3 import SD3Model
from branchgrpo.models.small.sd3 import CLIP_TOKENS, small_sd3

pytestmark = pytest.mark.networks

JOINT = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> checks.Family:
    return checks.Family(
        partial(SD3Model), small_sd3(tmp_path_factory.mktemp("sd3")), "guidance_scale"
    )


@pytest.fixture(scope="module")
def without_t5(tmp_path_factory: pytest.TempPathFactory) -> checks.Family:
    folder = small_sd3(tmp_path_factory.mktemp("sd3-without-t5"), t5=False)
    return checks.Family(
        partial(SD3Model), folder, "guidance_scale", {"text_encoder_3": None, "tokenizer_3": None}
    )


@pytest.mark.parametrize("steps", [4, 7])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 24)])
@pytest.mark.parametrize("scale", [1.0, 4.5])
def test_the_ode_path_is_diffusers_pipeline(
    family: checks.Family, height: int, width: int, scale: float, steps: int
) -> None:
    checks.draws_the_pipelines_pictures(family, height, width, scale, steps=steps)


def test_the_ode_path_with_an_empty_negative_prompt_and_no_t5(
    family: checks.Family, without_t5: checks.Family
) -> None:
    checks.draws_the_pipelines_pictures(family, height=32, width=32, scale=4.5, negative="")
    checks.draws_the_pipelines_pictures(without_t5, height=32, width=32, scale=4.5, negative="")


def test_text_and_the_negative_text_matter(family: checks.Family) -> None:
    checks.text_matters(family)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_rows_are_independent(family: checks.Family, scale: float) -> None:
    checks.rows_are_independent(family, scale)


def test_guided_velocity_is_that_of_two_plain_calls(family: checks.Family) -> None:
    checks.guidance_is_two_plain_calls(
        family, lambda wanted, unwanted: unwanted + checks.SCALE * (wanted - unwanted)
    )


def test_adapters_sit_in_both_attentions(family: checks.Family) -> None:
    joint = {
        f"transformer_blocks.{block}.attn.{layer}"
        for block, layer in itertools.product(range(3), JOINT)
    }
    pictures = {f"transformer_blocks.0.attn2.{layer}" for layer in JOINT[:4]}
    # the last block has no text after its attention
    checks.adapters_sit_in(family, joint - {"transformer_blocks.2.attn.to_add_out"} | pictures)


@pytest.mark.parametrize("rank", [0, 2])
def test_exports_draw_the_policys_picture(family: checks.Family, rank: int, tmp_path: Path) -> None:
    folder_checks.exports_draw_the_policys_picture(family, rank, tmp_path)


def test_only_the_wanted_parts_are_loaded(family: checks.Family, without_t5: checks.Family) -> None:
    folder_checks.only_the_wanted_parts_are_loaded(family)
    folder_checks.only_the_wanted_parts_are_loaded(without_t5)


@pytest.mark.parametrize("rank", [0, 2])
def test_checkpointing_keeps_the_gradient(family: checks.Family, rank: int) -> None:
    checks.checkpointing_keeps_the_gradient(family, rank)


def test_long_prompts_are_counted(family: checks.Family, without_t5: checks.Family) -> None:
    # T5 ends a text with one token
    checks.long_prompts_are_counted(family, " ".join(["circle"] * 23), " ".join(["circle"] * 24))
    model = without_t5.build(("encoders",))
    # CLIP adds two
    assert [
        model.truncated(records([" ".join(["circle"] * words)]))
        for words in (CLIP_TOKENS - 2, CLIP_TOKENS - 1)
    ] == [0, 1]


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_probes_have_the_texts_shapes(family: checks.Family, scale: float) -> None:
    checks.probes_have_the_texts_shapes(family, scale)


def test_bfloat16_is_near(family: checks.Family) -> None:
    checks.bfloat16_is_near(family)


def test_blocks_are_compiled(family: checks.Family, monkeypatch: pytest.MonkeyPatch) -> None:
    checks.blocks_are_compiled(family, monkeypatch)


def test_tokens_and_shapes(family: checks.Family) -> None:
    model = family.build(("denoiser",), height=48, width=24)
    assert model.latent_shape == (4, 12, 6)
    assert model.tokens(model.fingerprint_conditioning(2)) == 6 * 3 + 8
    assert model.blocks_of(model.denoiser) == list(model.denoiser.transformer_blocks)


def test_bad_folders_sizes_and_options_are_one_line(
    family: checks.Family, without_t5: checks.Family, tmp_path: Path
) -> None:
    folder_checks.folders_are_checked(family, tmp_path)
    without_t5.make().check()
    folder_checks.refused(family.make(height=36), "expected multiples of 8, got 36×32")
    folder_checks.refused(
        family.make(width=104),
        "expected at most 96, as many positions as the model knows, got 32×104",
    )
    folder_checks.refused(family.make(attention="flash"), "model.attention: expected it empty")
