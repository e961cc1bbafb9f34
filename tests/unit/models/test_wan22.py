"""Wan2.2 TI2V, text-to-video, on a small random checkpoint, against diffusers' own pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.small_wan import NEGATIVE, TOKENS, build, drawn, inputs, move, options, sampled, stock

from branchgrpo.errors import UserError
from branchgrpo.models.small.wan import CHANNELS, small_wan22
from branchgrpo.models.wan import WanModel

pytestmark = pytest.mark.networks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_wan22(tmp_path_factory.mktemp("wan22"))


@pytest.mark.parametrize("steps", [4, 7])
@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize(("frames", "height", "width"), [(5, 32, 64), (9, 64, 32)])
def test_the_ode_video_is_diffusers(
    folder: Path, frames: int, height: int, width: int, scale: float, steps: int
) -> None:
    model = build(
        folder, frames=frames, height=height, width=width, true_cfg=scale, negative_prompt=NEGATIVE
    )
    roots, found = sampled(model, steps)
    wanted, made = drawn(stock(folder), model, roots, steps)
    # of 16 × 16 pixels and 4 frames
    assert roots.shape == (3, CHANNELS, (frames - 1) // 4 + 1, height // 16, width // 16)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    pixels = model.decode(found)
    assert pixels.shape == made.shape == (3, frames, height, width, 3)
    assert np.abs(pixels - made * 255).max() <= 0.5 + 0.03
    # there is something to see, and it moves
    assert made.std() > 0.05 and np.ptp(made[:, 1:] - made[:, :-1]) > 0.1


def test_the_folder_s_shift_is_5(folder: Path) -> None:
    """w(t) = 5t / (1 + 4t) of UniPC's own times."""
    times = np.linspace(1.0, 0.001, 5)[:-1]
    levels = options(folder, width=64).schedule(4).levels
    np.testing.assert_allclose(levels, [*(5 * times / (1 + 4 * times)), 0.0], rtol=1e-6)


def test_tokens_of_a_forward(folder: Path) -> None:
    model = build(folder, width=64, true_cfg=3.0)
    cond = model.fingerprint_conditioning(1, TOKENS)
    # 2 latent frames of 1 × 2 patches, for the prompt and the negative one
    assert model.tokens(cond) == 2 * (2 * 1 * 2 + TOKENS)


@pytest.mark.parametrize(("form", "rank"), [("lora", 2), ("pipeline", 2), ("transformer", 0)])
def test_exports_draw_the_policys_video(folder: Path, tmp_path: Path, form: str, rank: int) -> None:
    from diffusers import WanTransformer3DModel

    model = build(
        folder,
        width=64,
        lora_rank=rank,
        lora_alpha=3 * rank,
        true_cfg=3.0,
        negative_prompt=NEGATIVE,
    )
    _, base = sampled(model)
    move(model, 0.2 if rank else 0.01)
    roots, found = sampled(model)
    assert float((found - base).abs().max()) > 0.1
    model.save(tmp_path / "out", folder, form)
    pipe = stock(tmp_path / "out" if form == "pipeline" else folder)
    if form == "lora":
        pipe.load_lora_weights(tmp_path / "out")
    if form == "transformer":
        pipe.transformer = WanTransformer3DModel.from_pretrained(tmp_path / "out")
    wanted, _ = drawn(pipe, model, roots)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_checkpointing_keeps_the_gradient(folder: Path) -> None:
    gradients = []
    for again in (False, True):
        model = build(folder, width=64, lora_rank=2, gradient_checkpointing=again, true_cfg=3.0)
        move(model, 0.1)
        loss = model.velocity(*inputs(model)).square().mean()
        found = torch.autograd.grad(loss, list(model.trainable().values()))
        gradients.append(torch.cat([one.flatten() for one in found]))
    assert float(gradients[0].norm()) > 0
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"width": 48}, r"model\.height, model\.width: expected multiples of 32, got 32×48$"),
        ({"frames": 16}, r"model\.frames: expected 1 \+ a multiple of 4, got 16$"),
    ],
)
def test_bad_options_are_one_line(folder: Path, keys: dict[str, Any], message: str) -> None:
    options(folder, width=64).check()
    with pytest.raises(UserError, match=message):
        options(folder, **{"width": 64, **keys}).check()


def test_a_small_model_is_of_the_large_ones_form(tmp_path: Path) -> None:
    """By what is known of its sizes; its pictures are multiples of what its latents need."""
    known = WanModel(path="/nowhere/Wan2.2-TI2V-5B-Diffusers", frames=17, evaluation_frames=121)
    small = known.shrunk(tmp_path / "known")
    small.check()
    assert small.per_token and (small.height, small.width) == (32, 64)
    assert (small.frames, small.evaluation_frames) == (5, 9)
    other = WanModel(path="/nowhere/else").shrunk(tmp_path / "other")
    other.check()
    assert not other.per_token and (other.height, other.width) == (32, 48)
