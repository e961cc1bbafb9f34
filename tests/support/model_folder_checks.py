"""What models of each family do with folders: what is read, written, refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from branchgrpo.errors import UserError
from branchgrpo.models.pipeline_options import PipelineModel
from support.model_checks import (
    PROMPTS,
    SCALE,
    SHIFT,
    TOLERANCE,
    Family,
    drawn,
    encoded,
    grown,
    inputs,
    move,
    velocity,
)
from support.records import records


def exports_draw_the_policys_picture(family: Family, rank: int, folder: Path) -> float:
    """What `save` writes, stock diffusers loads, and draws the picture of the policy with it;
    returns the largest difference."""
    import diffusers

    # not the rank, so that it matters
    options = {"true_cfg": SCALE, "lora_rank": rank, "lora_alpha": 3 * rank}
    model = family.build(**options)
    untrained = grown(model, shift=SHIFT)[1]
    move(model)
    roots, found = grown(model, shift=SHIFT)
    assert float((found - untrained).abs().max()) > 0.02
    pipes = []
    for form in ("transformer", "pipeline", "lora")[: 3 if rank else 2]:
        model.save(folder / form, family.folder, form, SHIFT)
        pipes.append(family.stock(folder / form if form == "pipeline" else None))
        if form != "pipeline":  # which bears its schedule
            pipes[-1].scheduler = type(pipes[-1].scheduler).from_config(
                pipes[-1].scheduler.config, use_dynamic_shifting=False, shift=SHIFT
            )
        if form == "transformer":
            pipes[-1].transformer = getattr(diffusers, model.options.transformer).from_pretrained(
                folder / form
            )
        if form == "lora":
            pipes[-1].load_lora_weights(folder / form)
            assert sorted(path.name for path in (folder / form).iterdir()) == [
                "pytorch_lora_weights.safetensors"
            ]
    worst = 0.0
    for pipe in pipes:
        latents, images = drawn(family, pipe, model.options, roots)
        torch.testing.assert_close(found, latents, rtol=0, atol=TOLERANCE)
        assert np.abs(model.decode(found)[:, 0].astype(int) - np.round(255 * images)).max() <= 1
        worst = max(worst, float((found - latents).abs().max()))
    # saving changes nothing
    torch.testing.assert_close(grown(model, shift=SHIFT)[1], found, rtol=0, atol=0)
    return worst


def only_the_wanted_parts_are_loaded(family: Family) -> None:
    """Each process gets what it needs, and works with it."""
    whole = family.build()
    x, sigma = inputs(whole, 1)
    cond = encoded(whole, PROMPTS[:1])
    found = velocity(whole, x, sigma, cond)

    denoiser = family.build(("denoiser",))
    assert not any(getattr(denoiser.pipe, part) for part in (*denoiser.options.text_parts, "vae"))
    assert torch.equal(velocity(denoiser, x, sigma, cond), found)

    decoder = family.build(("denoiser", "decoder"))
    assert not any(getattr(decoder.pipe, part) for part in decoder.options.text_parts)
    assert np.array_equal(decoder.decode(found), whole.decode(found)) and torch.equal(
        velocity(decoder, x, sigma, cond), found
    )

    encoders = family.build(("encoders",))
    assert (
        encoders.denoiser is None
        and encoders.pipe.vae is None
        and encoders.latent_shape == whole.latent_shape
    )
    assert all(
        torch.equal(array, cond[name]) for name, array in encoded(encoders, PROMPTS[:1]).items()
    )
    assert encoders.truncated(records(PROMPTS)) == 0


def refused(options: PipelineModel, expected: str) -> None:
    """`check` raises one line that holds `expected`."""
    with pytest.raises(UserError) as caught:
        options.check()
    message = str(caught.value)
    assert expected in message and "\n" not in message, message


def folders_are_checked(family: Family, folder: Path) -> None:
    """A whole folder passes; another pipeline's, another denoiser's, and one without a part are
    refused in one line."""
    family.make().check()
    for name, path, key, value, expected in (
        (
            "pipeline",
            "model_index.json",
            "_class_name",
            "OtherPipeline",
            f"expected a {family.make().pipeline} folder, got OtherPipeline",
        ),
        (
            "denoiser",
            "transformer/config.json",
            "_class_name",
            "Other",
            f"expected a {family.make().transformer}",
        ),
        ("encoder", "model_index.json", "text_encoder", [None, None], "expected a text_encoder in"),
    ):
        shutil.copytree(family.folder, folder / name)
        file = folder / name / path
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
        refused(family.make(path=str(folder / name)), expected)
    shutil.copytree(family.folder, folder / "missing", ignore=shutil.ignore_patterns("transformer"))
    refused(family.make(path=str(folder / "missing")), "transformer")
