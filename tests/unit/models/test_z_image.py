"""Z-Image against diffusers' own pipeline, on a small random folder."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

import pytest
import torch
from support import model_checks as checks
from support import model_folder_checks as folder_checks
from torch import Tensor

from branchgrpo.models.small.z_image import small_z_image
from branchgrpo.models.z_image import ZImageModel

pytestmark = pytest.mark.networks


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> checks.Family:
    return checks.Family(
        partial(ZImageModel), small_z_image(tmp_path_factory.mktemp("z-image")), "guidance_scale"
    )


# 18 tokens of the picture are filled up to 32; 32 are not
@pytest.mark.parametrize("steps", [4, 7])
@pytest.mark.parametrize(("height", "width"), [(64, 32), (48, 24)])
@pytest.mark.parametrize(("scale", "negative"), [(1.0, ""), (6.0, ""), (3.0, checks.NEGATIVE)])
def test_the_ode_path_is_diffusers_pipeline(
    family: checks.Family, height: int, width: int, scale: float, negative: str, steps: int
) -> None:
    checks.draws_the_pipelines_pictures(
        family, height=height, width=width, scale=scale, negative=negative, steps=steps
    )


# levels of 6 steps at a shift of 6: 1 − σ is 0, 0.03, 0.08, 0.14, 0.25, 0.45
@pytest.mark.parametrize("keys", [{"cfg_normalization": 0.8}, {"cfg_truncation": 0.1}])
def test_limits_of_guidance_are_the_pipelines(
    family: checks.Family, keys: dict[str, float]
) -> None:
    plain, limited = (
        checks.Family(partial(family.options, **more), family.folder, family.guidance)
        for more in ({}, keys)
    )
    checks.draws_the_pipelines_pictures(limited, 32, 32, 6.0, steps=6)
    pictures = [
        checks.grown(one.build(true_cfg=6.0, negative_prompt=checks.NEGATIVE), 6)[1]
        for one in (plain, limited)
    ]
    assert float((pictures[0] - pictures[1]).abs().max()) > 0.05


def test_text_and_the_negative_text_matter(family: checks.Family) -> None:
    checks.text_matters(family)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_rows_are_independent(family: checks.Family, scale: float) -> None:
    checks.rows_are_independent(family, scale)


def test_guided_velocity_is_that_of_two_plain_calls(family: checks.Family) -> None:
    """The pipeline's scale is what is added to the wanted velocity: one less."""

    def combined(wanted: Tensor, unwanted: Tensor) -> Tensor:
        return wanted + (checks.SCALE - 1) * (wanted - unwanted)

    checks.guidance_is_two_plain_calls(family, combined)


def test_limits_of_guidance_by_row(family: checks.Family) -> None:
    """Normalised rows are as long as they may be or shorter; a row past the truncation is the
    wanted one, beside one that is not."""
    model = family.build(true_cfg=4.0, cfg_normalization=0.5, cfg_truncation=0.5)
    # guided: u + 4 · (1 − u)
    wanted, unwanted = torch.ones(3, 4, 8, 8), torch.zeros(3, 4, 8, 8)
    unwanted[1], unwanted[2] = 1.9, 1.3
    levels = torch.tensor([0.5, -0.5, 0.1])[:, None, None, None]  # of 4, −1.7 and 0.1
    torch.testing.assert_close(model.guide(wanted, unwanted), levels.expand(3, 4, 8, 8))
    x, cond = checks.inputs(model, 2)[0], checks.encoded(model, checks.PROMPTS)
    early, late = (
        checks.velocity(model, x, torch.tensor(sigma), cond) for sigma in ([0.9, 0.2], [0.2, 0.9])
    )
    plain = family.build()
    alone = checks.encoded(plain, checks.PROMPTS)
    for guided, sigma, row in ((early, 0.2, 1), (late, 0.2, 0)):
        bare = checks.velocity(plain, x, torch.full((2,), sigma), alone)
        torch.testing.assert_close(guided[row], bare[row], rtol=0, atol=2e-5)
        assert float((guided[1 - row] - bare[1 - row]).abs().max()) > 0.05


def test_adapters_sit_in_attention(family: checks.Family) -> None:
    blocks = ("noise_refiner.0", "context_refiner.0", "layers.0", "layers.1")
    layers = ("to_q", "to_k", "to_v", "to_out.0")
    checks.adapters_sit_in(
        family,
        {f"{block}.attention.{layer}" for block, layer in itertools.product(blocks, layers)},
    )


@pytest.mark.parametrize("rank", [0, 2])
def test_exports_draw_the_policys_picture(family: checks.Family, rank: int, tmp_path: Path) -> None:
    folder_checks.exports_draw_the_policys_picture(family, rank, tmp_path)


def test_only_the_wanted_parts_are_loaded(family: checks.Family) -> None:
    folder_checks.only_the_wanted_parts_are_loaded(family)


@pytest.mark.parametrize("rank", [0, 2])
def test_checkpointing_keeps_the_gradient(family: checks.Family, rank: int) -> None:
    checks.checkpointing_keeps_the_gradient(family, rank)


def test_long_prompts_are_counted(family: checks.Family) -> None:
    # the template has 3 tokens before the text and 5 after
    checks.long_prompts_are_counted(family, " circle" * 16, " circle" * 17)


def test_padding_is_zero_and_masked(family: checks.Family) -> None:
    model = family.build(("encoders",))
    texts = list(checks.PROMPTS)
    text = model.texts(texts)
    lengths = model.tokenize(checks.PROMPTS)[0]
    assert texts == checks.PROMPTS  # the pipeline writes into its list
    assert text["text"].shape == (2, max(lengths), 24) and lengths[0] > lengths[1]
    assert text["mask"].sum(1).tolist() == lengths
    assert not text["text"][1, lengths[1] :].any() and text["text"][1, lengths[1] - 1].any()


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
    assert model.tokens(model.fingerprint_conditioning(2)) == 32 + 32  # of 18 and 8
    assert model.tokens(model.fingerprint_conditioning(2, 33)) == 32 + 64
    denoiser = model.denoiser
    assert set(model.blocks_of(denoiser)) == {
        *denoiser.noise_refiner,
        *denoiser.context_refiner,
        *denoiser.layers,
    }


def test_bad_folders_sizes_and_options_are_one_line(family: checks.Family, tmp_path: Path) -> None:
    folder_checks.folders_are_checked(family, tmp_path)
    folder_checks.refused(family.make(height=36), "expected multiples of 8, got 36×32")
    folder_checks.refused(
        family.make(width=136), "expected at most 128 and 128, as many positions as the model knows"
    )
    folder_checks.refused(
        family.make(max_sequence_length=65), "model.max_sequence_length: expected at most 64"
    )
    folder_checks.refused(
        family.make(attention="flash"), "model.attention: expected one that takes a mask"
    )
    family.make(attention="native", height=128, max_sequence_length=64).check()
