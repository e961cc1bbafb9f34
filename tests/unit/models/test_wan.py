"""Wan2.1 on a small random checkpoint, against diffusers' own pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.records import records
from support.small_wan import (
    NEGATIVE,
    PROMPTS,
    TOKENS,
    build,
    drawn,
    inputs,
    move,
    options,
    sampled,
    stock,
)
from torch import Tensor

from branchgrpo.algo import plan as plans
from branchgrpo.errors import UserError
from branchgrpo.models.small.wan import small_wan
from branchgrpo.models.wan import Wan
from branchgrpo.rollout.sampler import Sampler
from branchgrpo.types import EVALUATION, Subtree, TreeKey

pytestmark = pytest.mark.networks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_wan(tmp_path_factory.mktemp("wan"))


@pytest.mark.parametrize("steps", [4, 7])
@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize(("frames", "height", "width"), [(5, 32, 48), (9, 48, 32)])
def test_the_ode_video_is_diffusers(
    folder: Path, frames: int, height: int, width: int, scale: float, steps: int
) -> None:
    model = build(
        folder, frames=frames, height=height, width=width, true_cfg=scale, negative_prompt=NEGATIVE
    )
    roots, found = sampled(model, steps)
    wanted, made = drawn(stock(folder), model, roots, steps)
    assert roots.shape == (
        3,
        16,
        (frames - 1) // 4 + 1,
        height // 8,
        width // 8,
    ) and made.shape == (3, frames, height, width, 3)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    pixels = model.decode(found)
    with torch.no_grad():
        exact = (
            torch.cat([model.pixels(one[None]) for one in found]).permute(0, 2, 3, 4, 1).numpy() / 2
            + 0.5
        )
    assert np.abs(exact - made).max() <= 1e-4 and np.abs(pixels - made * 255).max() <= 0.5 + 0.03
    # there is something to see, and it moves
    assert made.std() > 0.05 and np.ptp(made[:, 1:] - made[:, :-1]) > 0.1


def test_a_folder_with_an_euler_scheduler_has_that_ones_schedule(
    folder: Path, tmp_path: Path
) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    copytree(folder, tmp_path / "euler")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(tmp_path / "euler" / "scheduler")
    index = tmp_path / "euler" / "model_index.json"
    index.write_text(
        index.read_text().replace("UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler")
    )
    model = build(tmp_path / "euler", true_cfg=1.0)
    roots, found = sampled(model, 7)
    wanted, _ = drawn(stock(tmp_path / "euler"), model, roots, 7)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert np.abs(model.options.schedule(7).levels - options(folder).schedule(7).levels).max() > 0.1


def test_rows_do_not_feel_their_neighbours(folder: Path) -> None:
    model = build(folder, true_cfg=3.0, negative_prompt=NEGATIVE)
    x, sigma, _ = inputs(model, 2)
    # of 6 and of 19 tokens
    together, apart = (
        model.encode(records(PROMPTS)),
        [model.encode(records([prompt])) for prompt in PROMPTS],
    )
    for row, alone in enumerate(apart):
        assert together.arrays["text"].shape == (2, 2, TOKENS, 16)
        np.testing.assert_allclose(
            together.arrays["text"][row], alone.arrays["text"][0], rtol=0, atol=1e-5
        )
    assert not together.arrays["text"][0, 0, -1].any()  # zeros at the end the shorter one
    with torch.no_grad():
        found = model.velocity(x, sigma, model.conditioning(together))
        rows = [
            model.velocity(x[row : row + 1], sigma[row : row + 1], model.conditioning(apart[row]))
            for row in range(2)
        ]
        changed = model.velocity(torch.stack([x[0], 9 * x[1]]), sigma, model.conditioning(together))
    torch.testing.assert_close(found, torch.cat(rows), rtol=0, atol=2e-5)
    torch.testing.assert_close(found[0], changed[0], rtol=0, atol=2e-5)
    assert float((found[1] - changed[1]).abs().max()) > 0.1


def test_guidance_is_that_of_two_plain_calls_and_counts_twice(folder: Path) -> None:
    guided = build(folder, true_cfg=3.0, negative_prompt=NEGATIVE)
    plain = build(folder, true_cfg=1.0)
    x, sigma, _ = inputs(plain, 2)
    texts = [plain.conditioning(plain.encode(records(one))) for one in (PROMPTS, [NEGATIVE] * 2)]
    both = guided.conditioning(guided.encode(records(PROMPTS)))
    with torch.no_grad():
        wanted, unwanted = (plain.velocity(x, sigma, one) for one in texts)
        found = guided.velocity(x, sigma, both)
    torch.testing.assert_close(found, unwanted + 3.0 * (wanted - unwanted), rtol=0, atol=2e-5)
    assert float((found - wanted).abs().max()) > 0.01
    # 2 latent frames of 2 × 3 patches
    assert guided.tokens(both) == 2 * plain.tokens(texts[0]) == 2 * (2 * 2 * 3 + TOKENS)


def test_truncated_counts_long_prompts(folder: Path) -> None:
    model = build(folder, max_sequence_length=8)
    assert (
        model.truncated(records(PROMPTS)) == 1
        and model.truncated(records(["a red circle on"])) == 0
    )
    assert model.encode(records(PROMPTS)).arrays["text"].shape == (2, 2, 8, 16)


@pytest.mark.parametrize(
    ("parts", "absent"),
    [
        (("denoiser",), {"text_encoder", "tokenizer", "vae"}),
        (("denoiser", "decoder"), {"text_encoder", "tokenizer"}),
        (("encoders",), {"transformer", "vae"}),
    ],
)
def test_a_process_loads_only_its_parts(folder: Path, parts: Any, absent: set[str]) -> None:
    whole = build(folder, frames=5, evaluation_frames=9)
    model = options(folder, frames=5, evaluation_frames=9).build("cpu", parts)
    held = {"transformer", "text_encoder", "tokenizer", "vae"}
    assert {name for name in held if getattr(model.pipe, name) is None} == absent
    assert model.latent_shape == whole.latent_shape == (16, 2, 4, 6)
    assert model.in_evaluation(0, 0).latent_shape == (16, 3, 4, 6)
    if "denoiser" in parts:
        with torch.no_grad():
            assert torch.equal(model.velocity(*inputs(model)), whole.velocity(*inputs(whole)))
    if "decoder" in parts:
        x = torch.randn(2, *model.latent_shape)
        assert np.array_equal(model.decode(x), whole.decode(x))
    if "encoders" in parts:
        assert np.array_equal(
            model.encode(records(PROMPTS)).arrays["text"],
            whole.encode(records(PROMPTS)).arrays["text"],
        )


def watched(model: Wan) -> list[tuple[int, ...]]:
    """Shapes of what the decoder's layers get from now on."""
    seen: list[tuple[int, ...]] = []
    decode = model.pipe.vae.decoder.forward

    def spy(x: Tensor, *rest: Any, **keys: Any) -> Tensor:
        seen.append(tuple(x.shape))
        found: Tensor = decode(x, *rest, **keys)
        return found

    model.pipe.vae.decoder.forward = spy
    return seen


def test_videos_are_decoded_one_by_one_and_frame_by_frame(folder: Path) -> None:
    model = build(folder)
    seen = watched(model)
    x = torch.randn(3, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    pixels = model.decode(x)
    assert pixels.shape == (3, 5, 32, 48, 3) and pixels.dtype == np.uint8
    assert seen == [(1, 16, 1, 4, 6)] * 6  # one video, one latent frame at a time
    assert np.abs(build(folder, decode_batch=2).decode(x).astype(int) - pixels).max() <= 1
    assert model.pipe.vae.dtype == build(folder, dtype="bfloat16").pipe.vae.dtype == torch.float32


def test_large_frames_are_decoded_in_tiles(folder: Path) -> None:
    model = options(folder, height=272, width=32, frames=1, vae_tiling=True).build(
        "cpu", ("decoder",)
    )
    seen = watched(model)
    assert model.decode(torch.randn(1, *model.latent_shape)).shape == (1, 1, 272, 32, 3)
    # rows 0 to 31 and 24 to 33 of 34: tiles of 256 pixels, 192 apart
    assert seen == [(1, 16, 1, 32, 4), (1, 16, 1, 10, 4)]


def test_evaluation_draws_its_own_shape(folder: Path) -> None:
    model = options(folder, frames=5, evaluation_frames=9).build("cpu", ("denoiser",))
    plan = plans.ode_plan(model.options.schedule(2))
    trees = tuple(Subtree(TreeKey("run", EVALUATION, row, 0), row, 0) for row in range(2))
    for size, shape in (((0, 0), (16, 3, 4, 6)), ((64, 0), (16, 3, 8, 6))):
        sampler = Sampler(model.in_evaluation(*size), 5, torch.float32, 2)
        assert sampler.roots(plan, trees).shape == (2, *shape)
    assert model.latent_shape == (16, 2, 4, 6)
    plain = options(folder).build("cpu", ("denoiser",))
    assert plain.in_evaluation(0, 48) is plain and plain.in_evaluation(0, 0) is plain


def test_the_lora_file_draws_the_policys_video(folder: Path, tmp_path: Path) -> None:
    model = build(folder, lora_rank=2, lora_alpha=7, true_cfg=3.0, negative_prompt=NEGATIVE)
    names = {name.rpartition(".lora_")[0] for name in model.trainable()}
    assert names == {
        f"blocks.{block}.attn{part}.{layer}"
        for block in (0, 1)
        for part in (1, 2)
        for layer in ("to_q", "to_k", "to_v", "to_out.0")
    }
    roots, base = sampled(model)
    move(model, 0.2)
    _, found = sampled(model)
    assert float((found - base).abs().max()) > 0.1
    model.save(tmp_path / "lora", folder, "lora")
    (saved,) = (tmp_path / "lora").glob("*")
    assert len(load_file(saved)) == len(model.trainable()) == 32
    pipe = stock(folder)
    pipe.load_lora_weights(tmp_path / "lora")
    wanted, _ = drawn(pipe, model, roots)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("form", "rank"), [("transformer", 0), ("transformer", 2), ("pipeline", 2)]
)
def test_saved_weights_draw_the_policys_video(
    folder: Path, tmp_path: Path, form: str, rank: int
) -> None:
    from diffusers import WanTransformer3DModel

    model = build(
        folder,
        lora_rank=rank,
        lora_alpha=7,
        lora_targets=("to_q", "ffn.net.0.proj", "ffn.net.2") if rank else (),
        true_cfg=1.0,
    )
    move(model, 0.2 if rank else 0.01)
    shift = 2.0 if form == "pipeline" else None
    roots, found = sampled(model, shift=shift)
    model.save(tmp_path / "out", folder, form, shift)
    pipe = stock(tmp_path / "out" if form == "pipeline" else folder)
    untrained = pipe.transformer
    if form == "transformer":
        pipe.transformer = WanTransformer3DModel.from_pretrained(tmp_path / "out")
        before, _ = drawn(stock(folder), model, roots)
        assert pipe.transformer is not untrained and float((found - before).abs().max()) > 0.01
    wanted, _ = drawn(pipe, model, roots)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rank", [0, 2])
def test_gradient_checkpointing_changes_memory_alone(folder: Path, rank: int) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = build(folder, lora_rank=rank, gradient_checkpointing=checkpointing, true_cfg=3.0)
        move(model, 0.01)
        assert model.denoiser.gradient_checkpointing == checkpointing
        loss = model.velocity(*inputs(model)).square().mean()
        gradients.append(
            torch.cat(
                [
                    one.flatten()
                    for one in torch.autograd.grad(loss, list(model.trainable().values()))
                ]
            )
        )
    assert float(gradients[0].norm()) > 0
    assert float((gradients[0] - gradients[1]).norm()) <= 1e-5 * float(gradients[0].norm())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"frames": 16}, r"model\.frames: expected 1 \+ a multiple of 4, got 16$"),
        (
            {"evaluation_frames": 80},
            r"model\.evaluation_frames: expected 1 \+ a multiple of 4, got 80$",
        ),
        ({"height": 40}, r"model\.height, model\.width: expected multiples of 16, got 40×48$"),
        ({"width": 56}, r"expected multiples of 16, got 32×56$"),
        ({"path": "embedded:tiny-flux"}, "expected a WanPipeline folder, got FluxPipeline at"),
    ],
)
def test_bad_options_are_one_line(folder: Path, keys: dict[str, Any], message: str) -> None:
    options(folder).check()
    with pytest.raises(UserError, match=message) as caught:
        options(folder, **keys).check()
    assert "\n" not in str(caught.value)


def test_an_older_folder_has_the_scales_that_its_pipeline_assumes(
    folder: Path, tmp_path: Path
) -> None:
    copytree(folder, tmp_path / "old")
    path = tmp_path / "old" / "vae" / "config.json"
    kept = {
        key: value
        for key, value in json.loads(path.read_text()).items()
        if not key.startswith("scale_factor")
    }
    path.write_text(json.dumps(kept))
    model = options(tmp_path / "old")
    model.check()
    assert (model.scale(), model.period(), model.shape()) == (8, 4, (16, 2, 4, 6))
