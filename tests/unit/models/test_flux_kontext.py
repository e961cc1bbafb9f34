"""FLUX.1-Kontext against diffusers' own pipeline, on a small random folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import model_checks as checks
from support.small_trees import quickstart

from branchgrpo.algo.plan import ode_plan
from branchgrpo.errors import UserError
from branchgrpo.models.flux_kontext import FluxKontextModel
from branchgrpo.models.small.flux import small_flux
from branchgrpo.rollout.sampler import Sampler
from branchgrpo.runs import model_card
from branchgrpo.types import Picture, Sample, Subtree, TreeKey

pytestmark = pytest.mark.networks

TREES = tuple(Subtree(TreeKey("run", 0, row, 0), row, 0) for row in range(2))


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> checks.Family:
    folder = small_flux(tmp_path_factory.mktemp("kontext"), "FluxKontextPipeline")
    return checks.Family(FluxKontextModel, folder, "true_cfg_scale")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Two records with pictures of 40 × 72 and 64 × 48 pixels."""
    folder, found = tmp_path_factory.mktemp("pictures"), []
    for index, (size, prompt) in enumerate(zip(((40, 72), (64, 48)), checks.PROMPTS, strict=True)):
        pixels = np.random.default_rng(index).integers(0, 256, (*size, 3), dtype=np.uint8)
        path = folder / f"{index}.png"
        Image.fromarray(pixels).save(path)
        found.append(Sample(prompt=prompt, images=(Picture(str(path)),)))
    return found


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize(
    ("height", "width", "source"), [(32, 32, (0, 0)), (48, 24, (0, 0)), (32, 48, (24, 64))]
)
def test_the_ode_path_is_diffusers_pipeline(
    family: checks.Family,
    samples: list[Sample],
    height: int,
    width: int,
    source: tuple[int, int],
    scale: float,
) -> None:
    model = family.build(
        height=height,
        width=width,
        true_cfg=scale,
        negative_prompt=checks.NEGATIVE,
        source_height=source[0],
        source_width=source[1],
    )
    plan = ode_plan(model.options.schedule(checks.STEPS))
    sampler = Sampler(model, 5, torch.float32, 2)
    roots = sampler.roots(plan, TREES)
    found = sampler.grow(
        plan, subtrees=TREES, x=roots, start=0, stop=plan.steps, conditioning=model.encode(samples)
    ).frontier
    pipe = family.stock()
    for row, sample in enumerate(samples):
        own = model.options.source_size
        picture = sample.images[0].open().resize(own[::-1], Image.Resampling.LANCZOS)
        seen: list[Any] = []

        def keep(_: Any, step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
            seen.append(values["latents"])  # noqa: B023
            return {}

        images = pipe(
            image=picture,
            prompt=sample.prompt,
            num_inference_steps=checks.STEPS,
            latents=roots[row : row + 1].clone(),
            output_type="np",
            callback_on_step_end=keep,
            **model.options.stock_call(),
        ).images
        torch.testing.assert_close(found[row], seen[-1][0], rtol=0, atol=checks.TOLERANCE)
        drawn = model.decode(found[row : row + 1])[0, 0]
        assert np.abs(drawn.astype(int) - np.round(255 * images[0])).max() <= 1
        assert images.shape == (1, height, width, 3)


def test_the_picture_matters_and_rows_are_independent(
    family: checks.Family, samples: list[Sample]
) -> None:
    model = family.build()
    x, sigma = checks.inputs(model, 2)
    both = model.conditioning(model.encode(samples))
    together = checks.velocity(model, x, sigma, both)
    for row in range(2):
        alone = model.conditioning(model.encode(samples[row : row + 1]))
        found = checks.velocity(model, x[row : row + 1], sigma[row : row + 1], alone)
        torch.testing.assert_close(found, together[row : row + 1], rtol=0, atol=2e-5)
    swapped = both | {"source": both["source"].flip(0)}
    assert float((checks.velocity(model, x, sigma, swapped) - together).abs().max()) > 0.01
    assert model.tokens(both) == 2 * 16 + both["text"].shape[1]


def test_probes_have_the_shapes_of_encodings(family: checks.Family, samples: list[Sample]) -> None:
    for scale in (1.0, 3.0):
        model = family.build(true_cfg=scale)
        fixed, real = (
            model.fingerprint_conditioning(2),
            model.conditioning(model.encode(samples)),
        )
        assert {name: array.ndim for name, array in fixed.items()} == {
            name: array.ndim for name, array in real.items()
        }
        assert fixed["source"].shape == real["source"].shape
        x, sigma = checks.inputs(model, 2)
        assert checks.velocity(model, x, sigma, fixed).isfinite().all()


def test_adapters_are_written_as_the_stock_pipeline_loads_them(
    family: checks.Family, samples: list[Sample], tmp_path: Path
) -> None:
    model = family.build(lora_rank=2)
    checks.move(model)
    model.save(tmp_path, family.folder, "lora")
    pipe = family.stock()
    pipe.load_lora_weights(tmp_path)
    x, sigma = checks.inputs(model, 1)
    cond = model.conditioning(model.encode(samples[:1]))
    wanted = checks.velocity(model, x, sigma, cond)
    model.denoiser = pipe.transformer
    found = checks.velocity(model, x, sigma, cond)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)
    assert float((checks.velocity(family.build(), x, sigma, cond) - wanted).abs().max()) > 0.01


def test_sizes_and_pictures_that_do_not_fit_are_refused(
    family: checks.Family, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"model.source_height, .* multiples of 8, got 20×32"):
        family.make(source_height=20).check()
    path = tmp_path / "broken.png"
    path.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"prompts: expected a picture at .*broken.png"):
        family.build().encode([Sample(prompt="x", images=(Picture(str(path)),))])


def test_the_card_s_code_opens_a_picture(family: checks.Family) -> None:
    config = quickstart({"run.export": "lora", "model.lora_rank": "2"}).model_copy(
        update={"model": family.make(lora_rank=2, width=48, source_width=24)}
    )
    lines = model_card.text(config, config.model, {"held_out": {}, "iterations": 1}).splitlines()
    wanted = 'Image.open("picture.png").convert("RGB").resize((24, 32), Image.Resampling.LANCZOS)'
    assert f"picture = {wanted}" in lines and "from PIL import Image" in lines
    assert "pipe(prompt=prompt, image=picture, " in "\n".join(lines)
