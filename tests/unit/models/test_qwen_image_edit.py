"""Qwen-Image-Edit against diffusers' own pipeline, on small random folders."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import model_checks as checks
from support import model_folder_checks as folder_checks
from support.small_trees import quickstart

from branchgrpo.algo.plan import ode_plan
from branchgrpo.data import encodings
from branchgrpo.errors import UserError
from branchgrpo.models.qwen_image_edit import QwenImageEditModel, stock
from branchgrpo.models.small.qwen_image import small_qwen_image_edit
from branchgrpo.rollout.sampler import Sampler
from branchgrpo.runs import model_card
from branchgrpo.types import Picture, Sample, Subtree, TreeKey

pytestmark = pytest.mark.networks

TREES = tuple(Subtree(TreeKey("run", 0, row, 0), row, 0) for row in range(2))
JOINT = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


@pytest.fixture(scope="module", autouse=True)
def small_pictures() -> Any:
    """The stock pipeline makes pictures of about 32² for the autoencoder, 64² for the encoder."""
    patch = pytest.MonkeyPatch()
    patch.setattr(stock(), "VAE_IMAGE_SIZE", 32 * 32)
    patch.setattr(stock(), "CONDITION_IMAGE_SIZE", 64 * 64)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> checks.Family:
    folder = small_qwen_image_edit(tmp_path_factory.mktemp("edit"))
    return checks.Family(QwenImageEditModel, folder, "true_cfg_scale")


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> checks.Family:
    """As 2509: pictures to edit have the time of what is drawn."""
    folder = small_qwen_image_edit(tmp_path_factory.mktemp("edit-2509"), zero_cond_t=False)
    return checks.Family(QwenImageEditModel, folder, "true_cfg_scale")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Picture]:
    """Four, of different shapes."""
    folder, found = tmp_path_factory.mktemp("pictures"), []
    for index, size in enumerate(((40, 72), (64, 48), (30, 30), (50, 33))):
        pixels = np.random.default_rng(index).integers(0, 256, (*size, 3), dtype=np.uint8)
        path = folder / f"{index}.png"
        Image.fromarray(pixels).save(path)
        found.append(Picture(str(path)))
    return found


def edits(pictures: list[Picture], each: int) -> list[Sample]:
    """Two records."""
    return [
        Sample(prompt=prompt, images=tuple(pictures[each * row : each * (row + 1)]))
        for row, prompt in enumerate(checks.PROMPTS)
    ]


def drawn_by(pipe: Any, model: Any, sample: Sample, root: torch.Tensor) -> tuple[Any, Any]:
    """(clean latents, picture) of the stock pipeline's own call, with the pictures as its users
    have them: of one shape."""
    seen: list[Any] = []

    def keep(_: Any, step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
        seen.append(values["latents"])
        return {}

    size = model.options.source_size[::-1]
    found = [one.open().resize(size, Image.Resampling.LANCZOS) for one in sample.images]
    images = pipe(
        image=found if len(found) > 1 else found[0],
        prompt=sample.prompt,
        num_inference_steps=checks.STEPS,
        latents=root.clone(),
        output_type="np",
        callback_on_step_end=keep,
        **model.options.stock_call(),
    ).images
    return seen[-1][0], images[0]


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize(
    ("height", "width", "source"), [(32, 32, (0, 0)), (48, 24, (0, 0)), (32, 48, (64, 32))]
)
@pytest.mark.parametrize("name", ["family", pytest.param("older", marks=pytest.mark.slow)])
def test_the_ode_path_is_diffusers_pipeline(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    pictures: list[Picture],
    name: str,
    each: int,
    height: int,
    width: int,
    source: tuple[int, int],
    scale: float,
) -> None:
    family: checks.Family = request.getfixturevalue(name)
    model = family.build(
        height=height,
        width=width,
        true_cfg=scale,
        negative_prompt=checks.NEGATIVE,
        pictures=each,
        source_height=source[0],
        source_width=source[1],
    )
    if source[0]:  # which the model card's code says
        monkeypatch.setattr(stock(), "VAE_IMAGE_SIZE", source[0] * source[1])
    plan = ode_plan(model.options.schedule(checks.STEPS))
    sampler, samples = Sampler(model, 5, torch.float32, 2), edits(pictures, each)
    roots = sampler.roots(plan, TREES)
    found = sampler.grow(
        plan, subtrees=TREES, x=roots, start=0, stop=plan.steps, conditioning=model.encode(samples)
    ).frontier
    pipe = family.stock()
    for row, sample in enumerate(samples):
        latents, image = drawn_by(pipe, model, sample, roots[row : row + 1])
        torch.testing.assert_close(found[row], latents, rtol=0, atol=checks.TOLERANCE)
        drawn = model.decode(found[row : row + 1])[0, 0]
        assert np.abs(drawn.astype(int) - np.round(255 * image)).max() <= 1
        assert image.shape == (height, width, 3)


def test_the_small_tokenizer_reads_the_pipelines_instruction_as_the_real_one(
    family: checks.Family,
) -> None:
    pipe = family.build(("encoders",)).pipe
    before = pipe.tokenizer(pipe.prompt_template_encode.split("{}")[0])["input_ids"]
    assert len(before) == pipe.prompt_template_encode_start_idx == 64


def test_text_and_pictures_matter_and_rows_are_independent(
    family: checks.Family, pictures: list[Picture]
) -> None:
    model, samples = family.build(pictures=2), edits(pictures, 2)
    x, sigma = checks.inputs(model, 2)
    both = model.conditioning(model.encode(samples))
    together = checks.velocity(model, x, sigma, both)
    assert model.tokens(both) == 16 + 2 * 16 + both["text"].shape[1]
    for row in range(2):
        alone = model.conditioning(model.encode(samples[row : row + 1]))
        found = checks.velocity(model, x[row : row + 1], sigma[row : row + 1], alone)
        torch.testing.assert_close(found, together[row : row + 1], rtol=0, atol=2e-5)
    for places, least in (((3, 2, 1, 0), 0.01), ((1, 0, 3, 2), 1e-4)):  # others; in another order
        other = model.conditioning(model.encode(edits([pictures[place] for place in places], 2)))
        for name in ("source", "text"):
            changed = checks.velocity(model, x, sigma, both | {name: other[name]})
            assert float((changed - together).abs().max()) > least, (places, name)


def test_the_time_of_pictures_is_the_models_own(
    family: checks.Family, older: checks.Family
) -> None:
    """At σ = 0 both read the same, else not: the small folders have the same weights."""
    models = [one.build() for one in (family, older)]
    x, _ = checks.inputs(models[0], 1)
    cond = models[0].fingerprint_conditioning(1)
    for sigma, same in ((0.0, True), (0.7, False)):
        one, other = (checks.velocity(model, x, torch.tensor([sigma]), cond) for model in models)
        assert torch.allclose(one, other, rtol=0, atol=1e-5) == same


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_probes_have_the_shapes_of_encodings(
    family: checks.Family, pictures: list[Picture], scale: float
) -> None:
    model = family.build(true_cfg=scale, pictures=2)
    fixed, real = (
        model.fingerprint_conditioning(2),
        model.conditioning(model.encode(edits(pictures, 2))),
    )
    assert {name: array.ndim for name, array in fixed.items()} == {
        name: array.ndim for name, array in real.items()
    }
    assert fixed["source"].shape == real["source"].shape
    x, sigma = checks.inputs(model, 2)
    assert checks.velocity(model, x, sigma, fixed).isfinite().all()


def test_long_prompts_are_cut_and_counted(family: checks.Family, pictures: list[Picture]) -> None:
    """The pictures' rows stay; the estimate counts both."""
    model = family.build(("encoders", "decoder"), pictures=2)
    longest = " circle" * (family.text - 5)  # the pipeline's template ends a text with five tokens
    images = tuple(pictures[:2])
    samples = [
        Sample(prompt=text, images=images)
        for text in (longest, *checks.PROMPTS, longest + " circle" * 5, longest + " circle" * 9)
    ]
    assert model.truncated(samples) == 2
    encoded = model.rows(samples)
    lengths = encoded["mask"].sum(1).tolist()
    assert lengths[0] == lengths[3] == lengths[4] == model.options.text_tokens
    assert lengths[1] < lengths[0] and not encoded["text"][1, int(lengths[1]) :].any()
    torch.testing.assert_close(encoded["text"][3], encoded["text"][4], rtol=0, atol=1e-5)


def test_adapters_sit_in_the_attention_that_is_read(family: checks.Family) -> None:
    joint = {
        f"transformer_blocks.{block}.attn.{layer}"
        for block, layer in itertools.product(range(2), JOINT)
    }
    checks.adapters_sit_in(family, joint - {"transformer_blocks.1.attn.to_add_out"})


@pytest.mark.parametrize("rank", [0, 2])
def test_checkpointing_keeps_the_gradient(family: checks.Family, rank: int) -> None:
    checks.checkpointing_keeps_the_gradient(family, rank)


@pytest.mark.parametrize("form", ["lora", "transformer", "pipeline"])
def test_exports_draw_the_policys_velocity(
    family: checks.Family, pictures: list[Picture], form: str, tmp_path: Path
) -> None:
    model = family.build(lora_rank=2)
    checks.move(model)
    model.save(tmp_path, family.folder, form)
    pipe = family.stock(tmp_path if form == "pipeline" else None)
    if form == "lora":
        pipe.load_lora_weights(tmp_path)
    if form == "transformer":
        pipe.transformer = type(pipe.transformer).from_pretrained(tmp_path)
    x, sigma = checks.inputs(model, 1)
    cond = model.conditioning(model.encode(edits(pictures, 1)[:1]))
    wanted = checks.velocity(model, x, sigma, cond)
    model.denoiser = pipe.transformer
    found = checks.velocity(model, x, sigma, cond)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)
    assert float((checks.velocity(family.build(), x, sigma, cond) - wanted).abs().max()) > 0.01


def test_folders_sizes_and_pictures_that_do_not_fit_are_refused(
    family: checks.Family, pictures: list[Picture], tmp_path: Path
) -> None:
    folder_checks.folders_are_checked(family, tmp_path)
    words = "model.source_height, model.source_width: expected multiples of 32, or 0 both, got "
    folder_checks.refused(family.make(source_height=48, source_width=32), f"{words}48×32")
    folder_checks.refused(family.make(source_height=32), f"{words}32×0")
    model = family.build(pictures=2)
    with pytest.raises(
        UserError, match=r"prompts: expected 2 pictures \(model.pictures\) .* got 1"
    ):
        model.encode([Sample(prompt="x", images=tuple(pictures[:1]))])
    path = tmp_path / "broken.png"
    path.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"prompts: expected a picture at .*broken.png"):
        model.encode([Sample(prompt="x", images=(Picture(str(path)),) * 2)])


def test_what_encodings_depend_on_names_their_folder(family: checks.Family, tmp_path: Path) -> None:
    """Sizes and numbers of pictures, and the autoencoder's weights."""
    changes: list[dict[str, Any]] = [{}, {"pictures": 2}, {"width": 64}]
    changes += [{"source_height": 32, "source_width": side} for side in (32, 64)]
    names = {encodings.folder_of(family.make(**keys)) for keys in changes}
    assert len(names) == len(changes)
    small_qwen_image_edit(tmp_path)
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    assert encodings.folder_of(family.make(path=str(tmp_path))) in names
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\1\0")
    assert encodings.folder_of(family.make(path=str(tmp_path))) not in names


@pytest.mark.parametrize("source", [(0, 0), (64, 32)])
def test_the_cards_code_opens_pictures_and_sizes_them(
    family: checks.Family,
    source: tuple[int, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = {"source_height": source[0], "source_width": source[1], "lora_rank": 2, "pictures": 2}
    config = quickstart({"run.export": "lora", "model.lora_rank": "2"}).model_copy(
        update={"model": family.make(width=64, **keys)}
    )
    model: Any = config.model
    card = model_card.text(config, model, {"held_out": {}, "iterations": 1})
    assert "pipe(prompt=prompt, image=picture, " in card and "from PIL import Image" in card
    lines = model.picture_code()
    assert all(line in card.splitlines() for line in lines)
    for index in (1, 2):
        Image.new("RGB", (9, 7)).save(tmp_path / f"picture-{index}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stock(), "VAE_IMAGE_SIZE", stock().VAE_IMAGE_SIZE)  # restored afterwards
    names: dict[str, Any] = {"Image": Image}
    exec("\n".join(lines), names)
    width, height = names["size"]
    assert [one.size for one in names["picture"]] == [(width, height)] * 2
    assert model.source_size == (height, width) == (source if source[0] else (32, 32))
    # the stock pipeline leaves them as they are
    assert stock().calculate_dimensions(stock().VAE_IMAGE_SIZE, width / height) == (width, height)
