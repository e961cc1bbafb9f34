"""Held-out pictures of another size than trees in training: a rollout worker's are those of
diffusers' own pipeline at that size, and its trees stay as they were, bit by bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.records import records
from support.small_trees import quickstart
from support.small_wan import stock as stock_wan

from actors.rollout import RolloutWorker
from branchgrpo.algo import noise
from branchgrpo.algo.plan import ode_plan
from branchgrpo.config.schema import Config
from branchgrpo.data.encodings import Encodings
from branchgrpo.errors import UserError
from branchgrpo.models.qwen_image_edit import stock
from branchgrpo.models.small.flux import small_flux
from branchgrpo.models.small.flux2_klein import small_flux2_klein
from branchgrpo.models.small.qwen_image import small_qwen_image, small_qwen_image_edit
from branchgrpo.models.small.sd3 import small_sd3
from branchgrpo.models.small.wan import small_wan
from branchgrpo.models.small.z_image import small_z_image
from branchgrpo.types import EVALUATION, Conditioning, Picture, Sample, SegmentRequest, Subtree
from branchgrpo.types import TreeKey as Key

pytestmark = pytest.mark.networks

PROMPTS = ["the number 38 in black on yellow", "a red circle"]
SIZE = (48, 64)
STEPS = 3


def dynamic_flux(folder: Path, pipeline: str = "FluxPipeline") -> Path:
    """With FLUX.1-dev's scheduler, that shifts by the number of the picture's tokens."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    small_flux(folder, pipeline)
    shutil.rmtree(folder / "scheduler")
    FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, max_image_seq_len=64, base_image_seq_len=4
    ).save_pretrained(folder / "scheduler")
    return folder


WRITE: dict[str, Callable[[Path], Any]] = {
    "sd3": small_sd3,
    "flux": dynamic_flux,
    "flux_kontext": partial(dynamic_flux, pipeline="FluxKontextPipeline"),
    "qwen_image": small_qwen_image,
    "qwen_image_edit": small_qwen_image_edit,
    "flux2_klein": partial(small_flux2_klein, distilled=False),
    "z_image": small_z_image,
    "wan": small_wan,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            WRITE[family](made[family])
        return made[family]

    return folder


@pytest.fixture(scope="module", autouse=True)
def small_pictures() -> Iterator[None]:
    """To edit, for the autoencoder: about 32², of the shape of what is drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stock(), "VAE_IMAGE_SIZE", 32 * 32)
        yield


def config_of(family: str, folder: Path, size: tuple[int, int], **keys: Any) -> Config:
    """Trains at 32 × 32 pixels; held-out pictures are of `size`."""
    frames = {"frames": 5, "evaluation_frames": 9} if family == "wan" else {}
    model = {"name": family, "path": str(folder), "height": 32, "width": 32, "true_cfg": 3.0}
    given = model | frames | {"max_sequence_length": 24} | keys
    lines = ", ".join(f"{key}: {value}" for key, value in given.items())
    return quickstart(
        {
            "model": f"{{{lines}}}",
            "evaluation.height": str(size[0]),
            "evaluation.width": str(size[1]),
            "evaluation.steps": str(STEPS),
            "sampling.steps": "4",
            "method.splits": "[0, 2]",
        }
    )


def given(family: str, folder: Path) -> list[Sample]:
    """Two records, with the pictures that the family takes."""
    if family not in ("flux_kontext", "qwen_image_edit"):
        return records(PROMPTS)
    found = []
    for index, prompt in enumerate(PROMPTS):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 72, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        found.append(Sample(prompt=prompt, images=(Picture(str(folder / f"{index}.png")),)))
    return found


def grown(config: Config, samples: list[Sample], iteration: int) -> tuple[Any, Any, Any]:
    """(header, payload, media) of a rollout worker's tree for each record."""
    worker = RolloutWorker(config, 0)
    torch.manual_seed(0)
    worker.ready()
    judged = iteration == EVALUATION
    _, *encoded = worker.encode(samples, judged)
    schedule = config.evaluation_schedule() if judged else config.schedule()
    plan = ode_plan(schedule) if judged else config.method.plan(0, schedule)
    subtrees = tuple(Subtree(Key("run", iteration, row, 0), row, 0) for row in range(len(samples)))
    request = SegmentRequest(version=0, subtrees=subtrees, start=0, stop=plan.steps)
    header, payload, media = worker.grow(plan, request, *encoded)
    return header, payload, media


def stock_pictures(config: Config, folder: Path, samples: list[Sample]) -> np.ndarray:
    """[P, F, H, W, 3], 0 … 1: diffusers' pipeline, called as the model card says, from the noise of
    held-out pictures."""
    import diffusers

    model: Any = config.evaluated
    if model.called == "wan":
        pipe = stock_wan(folder)
    else:
        pipe = getattr(diffusers, model.pipeline).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    shape, found = model.build("cpu", ("denoiser",)).latent_shape, []
    for row, sample in enumerate(samples):
        latents = noise.draw(config.run.seed, Key("x", EVALUATION, row, 0), 0, shape)[None]
        call = {"prompt": sample.prompt, "num_inference_steps": STEPS, "latents": latents}
        if sample.images:
            size = model.source_size[::-1]
            picture = sample.images[0].open().resize(size, Image.Resampling.LANCZOS)
            call["image"] = picture
        drawn = pipe(**call, **model.stock_call(), output_type="np")
        pictures = getattr(drawn, model.output)
        found.append(np.asarray(pictures[0] if model.output == "frames" else pictures))
    return np.stack(found)


@pytest.mark.parametrize("family", WRITE)
def test_held_out_pictures_are_the_pipelines_at_their_size(
    family: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    config, samples = config_of(family, folders(family), SIZE), given(family, tmp_path)
    media = grown(config, samples, EVALUATION)[2]
    wanted = stock_pictures(config, folders(family), samples)
    frames = 9 if family == "wan" else 1
    assert media.pixels.shape == wanted.shape == (2, frames, *SIZE, 3)
    assert np.abs(media.pixels.astype(int) - np.round(255 * wanted)).max() <= 1
    assert float(np.std(wanted)) > 0.01


@pytest.mark.parametrize("family", ["sd3", "flux_kontext", "wan"])
def test_trees_in_training_stay_as_they_were(
    family: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    samples, found = given(family, tmp_path), []
    for size in ((0, 0), SIZE):
        found.append(grown(config_of(family, folders(family), size), samples, 0))
    (header, payload, media), (other, other_payload, other_media) = found
    assert np.array_equal(header.log_prob, other.log_prob)
    assert np.array_equal(payload.latents, other_payload.latents)
    assert np.array_equal(media.pixels, other_media.pixels)
    assert media.pixels.shape[2:4] == (32, 32)


def test_a_shift_that_follows_the_size_is_that_of_evaluation(
    folders: Callable[[str], Path],
) -> None:
    config = config_of("flux", folders("flux"), SIZE)
    own = config_of("flux", folders("flux"), (0, 0), height=SIZE[0], width=SIZE[1])
    assert np.array_equal(config.evaluation_schedule().levels, own.schedule(STEPS).levels)
    small = config_of("flux", folders("flux"), (0, 0))
    assert np.array_equal(config.schedule().levels, small.schedule().levels)
    assert not np.allclose(config.evaluation_schedule().levels, small.schedule(STEPS).levels)


def test_pictures_to_edit_are_encoded_at_the_size_that_is_drawn(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    """4 and 12 tokens of 16 × 16 pixels: in their own encodings, where they are made before."""
    samples = given("flux_kontext", tmp_path)
    config = config_of("flux_kontext", folders("flux_kontext"), SIZE)
    worker = RolloutWorker(config, 0)
    worker.ready()
    lengths = [
        Conditioning.joined(worker.encode(samples, judged)[1:]).arrays["source"].shape[-2]
        for judged in (False, True)
    ]
    unit = 2 * config.model.scale()  # type: ignore[attr-defined]
    assert lengths == [(32 // unit) ** 2, SIZE[0] * SIZE[1] // unit**2]
    stores = [Encodings.open(one).folder for one in (config.model, config.evaluated)]
    assert stores[0] != stores[1]
    text = config_of("flux", folders("flux"), SIZE)
    assert Encodings.open(text.model).folder == Encodings.open(text.evaluated).folder


@pytest.mark.parametrize(
    ("family", "size", "message"),
    [
        (
            "flux",
            (40, 33),
            r"^evaluation\.height, evaluation\.width: expected multiples of .*40×33",
        ),
        ("sd3", (32, 960), r"^evaluation\.height, evaluation\.width: expected at most .*32×960"),
        ("z_image", (960, 0), r"^evaluation\.height, evaluation\.width: expected at most .*960×32"),
    ],
)
def test_sizes_that_cannot_be_drawn_are_refused(
    family: str, size: tuple[int, int], message: str, folders: Callable[[str], Path]
) -> None:
    config = config_of(family, folders(family), size)
    config.model.check()
    with pytest.raises(UserError, match=message):
        config.evaluated.check_size("evaluation")
