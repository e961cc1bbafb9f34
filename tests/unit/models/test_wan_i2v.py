"""Wan image-to-video, of Wan2.1 and of Wan2.2 TI2V, on small random checkpoints, against diffusers'
own pipeline."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.small_trees import quickstart
from support.small_wan import NEGATIVE, PROMPTS, TOKENS, move
from support.small_wan_i2v import SIZES, TREES, build, drawn, grown, options, stock
from torch import Tensor

from branchgrpo.algo.methods.branch import BranchMethod
from branchgrpo.algo.plan import ode_plan
from branchgrpo.algo.schedule import static
from branchgrpo.data.encodings import folder_of
from branchgrpo.errors import UserError
from branchgrpo.models.small.wan import small_wan, small_wan22, small_wan_i2v
from branchgrpo.runs import model_card
from branchgrpo.types import Picture, Sample

pytestmark = pytest.mark.networks

SETTINGS = [
    ("2.1", 5, (32, 48)),
    ("2.1", 9, (48, 32)),
    ("2.2", 5, (32, 64)),
    ("2.2", 9, (64, 32)),
]
"""Version, frames, height and width."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("wan-i2v")
    return {"2.1": small_wan_i2v(root / "2.1"), "2.2": small_wan22(root / "2.2")}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Two records with pictures of 40 × 72 and 64 × 48 pixels."""
    root, found = tmp_path_factory.mktemp("pictures"), []
    for index, (size, prompt) in enumerate(zip(((40, 72), (64, 48)), PROMPTS, strict=True)):
        pixels = np.random.default_rng(index).integers(0, 256, (*size, 3), dtype=np.uint8)
        path = root / f"{index}.png"
        Image.fromarray(pixels).save(path)
        found.append(Sample(prompt=prompt, images=(Picture(str(path)),)))
    return found


@pytest.mark.parametrize(("scale", "steps"), [(1.0, 4), (5.0, 4), (5.0, 7)])
@pytest.mark.parametrize(("version", "frames", "size"), SETTINGS)
def test_the_ode_video_is_diffusers(
    folders: dict[str, Path],
    samples: list[Sample],
    version: str,
    frames: int,
    size: tuple[int, int],
    scale: float,
    steps: int,
) -> None:
    keys = {"height": size[0], "width": size[1], "frames": frames}
    model = build(folders[version], **keys, true_cfg=scale, negative_prompt=NEGATIVE)
    model.options.check()
    roots, found = grown(model, samples, ode_plan(model.options.schedule(steps)))
    pipe = stock(folders[version])
    for row, sample in enumerate(samples):
        wanted, made = drawn(pipe, model, sample, roots[row : row + 1], steps)
        torch.testing.assert_close(found[row], wanted[0], rtol=0, atol=1e-4)
        pixels = model.decode(found[row : row + 1])
        assert pixels.shape == made.shape == (1, frames, *size, 3)
        assert np.abs(pixels - made * 255).max() <= 0.5 + 0.03
        assert made.std() > 0.05 and np.ptp(made[:, 1:] - made[:, :-1]) > 0.1


@pytest.mark.parametrize("version", SIZES)
def test_the_picture_matters_and_rows_are_independent(
    folders: dict[str, Path], samples: list[Sample], version: str
) -> None:
    model = build(folders[version], true_cfg=3.0, negative_prompt=NEGATIVE)
    x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(3))
    sigma = torch.tensor([0.9, 0.3])

    def velocity(rows: slice, shown: list[Sample]) -> Tensor:
        with torch.no_grad():
            return model.velocity(x[rows], sigma[rows], model.conditioning(model.encode(shown)))

    together = velocity(slice(0, 2), samples)
    for row in range(2):
        alone = velocity(slice(row, row + 1), samples[row : row + 1])
        torch.testing.assert_close(alone, together[row : row + 1], rtol=0, atol=2e-5)
    swapped = [replace(samples[row], images=samples[1 - row].images) for row in range(2)]
    # beyond the first frame too
    assert float((velocity(slice(0, 2), swapped) - together)[:, :, 1:].abs().max()) > 0.01


def test_clip_and_the_further_channels_both_matter(
    folders: dict[str, Path], samples: list[Sample]
) -> None:
    model = build(folders["2.1"])
    cond = model.conditioning(model.encode(samples))
    x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        plain, *others = (
            model.velocity(x, torch.tensor([0.9, 0.3]), cond | {name: cond[name].flip(0)})
            for name in ("text", "source", "image")
        )
    assert all(float((one - plain).abs().max()) > 0.01 for one in others)
    # 2 latent frames of 2 × 3 patches, the text, and CLIP's 4 × 4 patches and its own token
    assert model.tokens(cond) == 2 * 2 * 3 + TOKENS + 17


@pytest.mark.parametrize("version", SIZES)
def test_held_out_videos_are_longer_and_larger(
    folders: dict[str, Path], samples: list[Sample], version: str
) -> None:
    trained = build(folders[version], evaluation_frames=9, true_cfg=3.0)
    model: Any = trained.in_evaluation(64, 64)
    assert trained.latent_shape[1] == 2 and model.latent_shape[1] == 3
    roots, found = grown(model, samples[:1], ode_plan(model.options.schedule(4)), TREES[:1])
    wanted, made = drawn(stock(folders[version]), model, samples[0], roots, 4)
    assert made.shape == (1, 9, 64, 64, 3)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_the_first_frame_is_no_part_of_the_policy(
    folders: dict[str, Path], samples: list[Sample]
) -> None:
    """However a tree splits, its leaves begin with the picture; its velocity is that of the line
    to it, at any weights."""
    model = build(folders["2.2"], lora_rank=2)
    plan = BranchMethod(splits=(0, 1), leaves=4, eta=0.5).plan(0, static(5, 3.0))
    source = model.conditioning(model.encode(samples[:1]))["source"]
    _, before = grown(model, samples[:1], plan, TREES[:1])
    move(model, 0.3)
    _, after = grown(model, samples[:1], plan, TREES[:1])
    for leaves in (before, after):
        torch.testing.assert_close(
            leaves[:, :, :1], source.expand(len(leaves), -1, -1, -1, -1), rtol=0, atol=2e-5
        )
    assert float((before - after)[:, :, 1:].abs().max()) > 0.1
    x, sigma = torch.randn(1, *model.latent_shape), torch.tensor([0.4])
    velocity = model.velocity(x, sigma, model.conditioning(model.encode(samples[:1])))
    torch.testing.assert_close(velocity[:, :, :1], (x[:, :, :1] - source) / 0.4)
    (gradient,) = torch.autograd.grad(
        velocity[:, :, :1].sum(), [next(iter(model.trainable().values()))]
    )
    assert not gradient.any()


def test_a_picture_is_encoded_once_beside_a_negative_prompt(
    folders: dict[str, Path], samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = build(folders["2.1"], true_cfg=3.0), []
    encode = model.pipe.vae.encode
    monkeypatch.setattr(model.pipe.vae, "encode", lambda x: seen.append(x.shape) or encode(x))
    cond = model.conditioning(model.encode(samples))
    assert seen == [(1, 3, 5, 32, 48)] * 2
    for name in ("source", "image"):
        assert torch.equal(cond[name][:, 0], cond[name][:, 1]) and len(cond[name]) == 2


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("version", SIZES)
def test_probes_have_the_shapes_of_encodings(
    folders: dict[str, Path], samples: list[Sample], version: str, scale: float
) -> None:
    model = build(folders[version], true_cfg=scale)
    fixed = model.fingerprint_conditioning(2, TOKENS)
    real = model.conditioning(model.encode(samples))
    assert {name: array.shape for name, array in fixed.items()} == {
        name: array.shape for name, array in real.items()
    }
    with torch.no_grad():
        x = torch.randn(2, *model.latent_shape)
        assert model.velocity(x, torch.tensor([0.9, 0.3]), fixed).isfinite().all()


@pytest.mark.parametrize("form", ["lora", "pipeline"])
@pytest.mark.parametrize("version", SIZES)
def test_exports_draw_the_policys_video(
    folders: dict[str, Path], samples: list[Sample], tmp_path: Path, version: str, form: str
) -> None:
    model = build(folders[version], lora_rank=2, lora_alpha=6)
    layers = {name.rpartition(".lora_")[0] for name in model.trainable()}
    assert ("blocks.0.attn2.add_k_proj" in layers) == (version == "2.1")
    plan = ode_plan(model.options.schedule(4))
    _, base = grown(model, samples[:1], plan, TREES[:1])
    move(model, 0.2)
    roots, found = grown(model, samples[:1], plan, TREES[:1])
    assert float((found - base).abs().max()) > 0.1
    model.save(tmp_path / "out", folders[version], form)
    pipe = stock(tmp_path / "out" if form == "pipeline" else folders[version])
    if form == "lora":
        pipe.load_lora_weights(tmp_path / "out")
    wanted, _ = drawn(pipe, model, samples[0], roots, 4)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_encodings_are_of_one_size_and_autoencoder(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    copytree(folders["2.2"], tmp_path / "2.2")
    weights = next((tmp_path / "2.2" / "vae").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-4] + b"\1\2\3\4")
    names = [
        folder_of(options(folder, **keys))
        for folder, keys in (
            (folders["2.2"], {}),
            (tmp_path / "2.2", {}),
            (folders["2.2"], {"height": 64}),
            (folders["2.1"], {}),
            (folders["2.1"], {"frames": 9}),
        )
    ]
    assert len(set(names)) == 5
    # the first frame alone is encoded
    assert folder_of(options(folders["2.2"], frames=9)) == names[0]


@pytest.mark.parametrize(
    ("version", "file", "changes", "message"),
    [
        ("2.1", "model_index.json", {"image_encoder": None}, "expected an image_encoder in"),
        ("2.1", "transformer/config.json", {"in_channels": 16}, "of 36 channels, in .*, got 16,"),
        ("2.1", "transformer/config.json", {"pos_embed_seq_len": 514}, "takes the last frame too"),
        ("2.2", "model_index.json", {"boundary_ratio": 0.9}, "expected a transformer_2 in"),
    ],
)
def test_folders_that_do_not_fit_are_refused(
    folders: dict[str, Path],
    tmp_path: Path,
    version: str,
    file: str,
    changes: dict[str, Any],
    message: str,
) -> None:
    folder = tmp_path / version
    copytree(folders[version], folder)
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=message):
        options(folder).check()


def test_text_to_video_and_single_frames_are_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    text = small_wan(tmp_path / "text")
    with pytest.raises(UserError, match=r"takes a first frame alone, of 36 channels, .*, got 16,"):
        options(text, width=48).check()
    with pytest.raises(
        UserError, match=r"model\.frames: expected more than the first frame, got 1"
    ):
        options(folders["2.2"], frames=1).check()
    with pytest.raises(UserError, match=r"model\.evaluation_frames: expected more than the first"):
        options(folders["2.2"], evaluation_frames=1).check()


def test_the_card_s_code_opens_a_picture(folders: dict[str, Path]) -> None:
    model = options(folders["2.2"], lora_rank=2)
    config = quickstart({"run.export": "lora", "model.lora_rank": "2"}).model_copy(
        update={"model": model}
    )
    text = model_card.text(config, config.model, {"held_out": {}, "iterations": 1})
    assert 'Image.open("picture.png").convert("RGB").resize((64, 32), ' in text
    assert "WanImageToVideoPipeline.from_pretrained(" in text
    assert "pipe(prompt=prompt, image=picture, " in text and "num_frames=5" in text


@pytest.mark.parametrize("version", SIZES)
def test_bfloat16_is_near(folders: dict[str, Path], samples: list[Sample], version: str) -> None:
    """Encoders and denoiser; a first frame that is part of the video is not rounded."""
    found = []
    for dtype in ("float32", "bfloat16"):
        model = build(folders[version], dtype=dtype, true_cfg=3.0)
        cond = model.conditioning(model.encode(samples))
        assert cond["source"].dtype == (torch.float32 if version == "2.2" else model.dtype)
        x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            found.append(model.velocity(x, torch.tensor([0.9, 0.3]), cond))
    one, other = found
    assert other.dtype == torch.float32
    assert 0 < float((one - other).norm()) < 0.05 * float(one.norm())


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("version", SIZES)
def test_checkpointing_keeps_the_gradient(
    folders: dict[str, Path], version: str, rank: int
) -> None:
    gradients = []
    for again in (False, True):
        model = build(folders[version], lora_rank=rank, gradient_checkpointing=again, true_cfg=3.0)
        move(model, 0.01)
        x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(3))
        cond = model.fingerprint_conditioning(2, TOKENS)
        loss = model.velocity(x, torch.tensor([0.9, 0.3]), cond).square().mean()
        parts = torch.autograd.grad(loss, list(model.trainable().values()))
        gradients.append(torch.cat([part.flatten() for part in parts]))
    assert float(gradients[0].norm()) > 0
    assert float((gradients[0] - gradients[1]).norm()) <= 1e-5 * float(gradients[0].norm())
