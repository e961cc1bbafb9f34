"""ImageReward against a forward pass written out in plain operations, and against its own package
where that is at hand."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reference import image_reward_package as package
from reference.image_reward_forward import (
    SIDE,
    State,
    by_torchvision,
    slow_score,
)
from support.records import records

from branchgrpo.config.registry import load
from branchgrpo.errors import UserError
from branchgrpo.rewards import REGISTRY
from branchgrpo.rewards.base import Resources
from branchgrpo.rewards.image_reward import ImageReward, ImageRewardReward, prepared

pytestmark = pytest.mark.networks

SHAPES = ((64, 64), (90, 70), (50, 131), (224, 300))
PROMPTS = ["a red fox in the snow", "A blue house, houses", "fox", "a fox " * 30]


def options(folder: Path, **more: object) -> ImageRewardReward:
    return ImageRewardReward(path=str(folder / package.CHECKPOINT), tokenizer=str(folder), **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("image_reward")
    package.write_checkpoint(made, SIDE)
    return made


@pytest.fixture(scope="module")
def scorer(folder: Path) -> ImageReward:
    return options(folder).build(Resources())


def drawn(height: int, width: int, seed: int) -> np.ndarray:
    """A picture u8 [1, H, W, 3] of smooth noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))[
        None
    ]


def loaded(folder: Path) -> State:
    return {
        name: value.double()
        for name, value in torch.load(folder / package.CHECKPOINT, weights_only=True).items()
    }


def test_scores_are_those_of_the_written_out_network(folder: Path, scorer: ImageReward) -> None:
    state = loaded(folder)
    found = []
    wanted = []
    for index, (shape, prompt) in enumerate(zip(SHAPES, PROMPTS, strict=True)):
        picture = drawn(*shape, index)
        found.append(float(scorer.score(picture[None], records([prompt]))["score"][0]))
        wanted.append(slow_score(state, picture[0], prompt))
    assert np.abs(np.subtract(found, wanted)).max() <= 1e-4
    assert np.std(wanted) > 0.01  # they tell pictures apart
    assert set(scorer.networks()) == {scorer.vision, scorer.text}


def test_picture_and_prompt_both_matter(scorer: ImageReward) -> None:
    pixels = np.stack([drawn(64, 64, 0), drawn(64, 64, 1), drawn(64, 64, 0)])
    first, other_picture, other_prompt = scorer.score(
        pixels, records(["a red fox", "a red fox", "a blue house"])
    )["score"]
    assert abs(first - other_picture) > 1e-3
    assert abs(first - other_prompt) > 1e-3


@pytest.mark.parametrize("shape", [(64, 64), (63, 65), (40, 200), (201, 33), (720, 480)])
def test_pictures_are_prepared_as_by_torchvision(shape: tuple[int, int]) -> None:
    picture = drawn(*shape, 3)[0]
    assert np.abs(prepared(picture, SIDE) - by_torchvision(picture, SIDE).numpy()).max() <= 1e-6


def test_neither_batches_nor_neighbours_change_scores(folder: Path, scorer: ImageReward) -> None:
    pixels = np.stack([drawn(70, 90, seed) for seed in range(5)])
    prompts = [*PROMPTS, "the snow"]
    together = scorer.score(pixels, records(prompts))["score"]
    assert together.shape == (5,) and together.dtype == np.float32
    small = options(folder, batch=2).build(Resources())
    assert np.abs(small.score(pixels, records(prompts))["score"] - together).max() <= 1e-5
    order = [3, 0, 4, 1, 2]
    mixed = scorer.score(pixels[order], records([prompts[index] for index in order]))["score"]
    assert np.abs(mixed - together[order]).max() <= 1e-5


def test_a_video_scores_the_mean_of_its_frames(folder: Path) -> None:
    frames = [drawn(64, 64, seed) for seed in range(3)]
    scorer = options(folder, frames=3).build(Resources())
    each = scorer.score(np.stack(frames), records(["a fox"] * 3))["score"]
    assert scorer.score(np.concatenate(frames)[None], records(["a fox"]))["score"][
        0
    ] == pytest.approx(each.mean(), abs=1e-5)


def test_half_precision_comes_close(folder: Path, scorer: ImageReward) -> None:
    pixels = np.stack([drawn(64, 64, seed) for seed in range(4)])
    half = (
        options(folder, dtype="bfloat16")
        .build(Resources())
        .score(pixels, records(PROMPTS))["score"]
    )
    assert 0 < np.abs(half - scorer.score(pixels, records(PROMPTS))["score"]).max() < 0.1


def test_the_table_leads_here(folder: Path) -> None:
    assert load(REGISTRY["image_reward"]) is ImageRewardReward
    options(folder).check()


@pytest.mark.skipif(
    "IMAGE_REWARD_PYTHON" not in os.environ,
    reason="needs image-reward, see reference/image_reward_package.py",
)
def test_scores_are_those_of_the_package(tmp_path: Path) -> None:
    package.write_checkpoint(tmp_path, 224)
    pictures = [
        drawn(*shape, index) for index, shape in enumerate((*SHAPES, (720, 720), (480, 832)))
    ]
    prompts = [*PROMPTS, "the fox in the blue snow", "unknown words"]
    for index, picture in enumerate(pictures):
        Image.fromarray(picture[0]).save(tmp_path / package.PICTURES.format(index))
    (tmp_path / package.PROMPTS).write_text(json.dumps(prompts), encoding="utf-8")
    run = [os.environ["IMAGE_REWARD_PYTHON"], package.__file__, str(tmp_path)]
    wanted = json.loads(
        subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    )
    scorer = options(tmp_path).build(Resources())
    found = [
        float(scorer.score(picture[None], records([prompt]))["score"][0])
        for picture, prompt in zip(pictures, prompts, strict=True)
    ]
    difference = np.abs(np.subtract(found, wanted)).max()
    print(f"largest difference {difference:.2e} between {found} and {wanted}")
    assert difference <= 1e-4
    assert np.std(wanted) > 0.01


class Malicious:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, ("echo run",)


def changed(folder: Path, change: Callable[[State], object]) -> None:
    state = torch.load(folder / package.CHECKPOINT, weights_only=True)
    change(state)
    torch.save(state, folder / package.CHECKPOINT)


def rewritten(folder: Path, **change: object) -> None:
    (folder / package.CONFIG).write_text(
        json.dumps(
            {name: value for name, value in (package.TEXT | change).items() if value is not None}
        ),
        encoding="utf-8",
    )


FOX = "blip.text_encoder.embeddings.word_embeddings.weight"
LAST = "mlp.layers.7.weight"
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no checkpoint": (
        lambda at: (at / package.CHECKPOINT).unlink(),
        "image_reward.path: expected ImageReward.pt, found nothing",
    ),
    "no config": (
        lambda at: (at / package.CONFIG).unlink(),
        "image_reward.config: expected med_config.json, found nothing",
    ),
    "no tokenizer": (
        lambda at: (at / package.VOCABULARY).unlink(),
        "image_reward.tokenizer: expected vocab.txt or tokenizer.json",
    ),
    "config lacks a size": (
        lambda at: rewritten(at, hidden_size=None),
        "image_reward.config: .* lacks hidden_size",
    ),
    "config of another size": (
        lambda at: rewritten(at, num_hidden_layers=3),
        "does not fit BlipTextModel: expected encoder.layer.2",
    ),
    "a pickle": (
        lambda at: torch.save({"a": Malicious()}, at / package.CHECKPOINT),
        "weights_only",
    ),
    "not tensors": (
        lambda at: torch.save({"a": 1}, at / package.CHECKPOINT),
        "expected a state dict",
    ),
    "truncated": (
        lambda at: (at / package.CHECKPOINT).write_bytes(
            (at / package.CHECKPOINT).read_bytes()[:5000]
        ),
        "image_reward.path: ",
    ),
    "empty": (lambda at: (at / package.CHECKPOINT).write_bytes(b""), "image_reward.path: "),
    "another network": (
        lambda at: torch.save({"visual.proj": torch.ones(2, 2)}, at / package.CHECKPOINT),
        r"got 1 with visual\.proj",
    ),
    "a tensor more": (
        lambda at: changed(at, lambda state: state.update({"itm_head.weight": torch.ones(2)})),
        r"got \d+ with itm_head\.weight",
    ),
    "a tensor less": (
        lambda at: changed(at, lambda state: state.pop("blip.visual_encoder.norm.bias")),
        r"expected post_layernorm\.bias \(128,\), got none",
    ),
    "another shape": (
        lambda at: changed(at, lambda state: state.update({FOX: torch.ones(3, 48)})),
        r"word_embeddings.weight \(17, 48\), got \(3, 48\)",
    ),
    "a head that ends wide": (
        lambda at: changed(at, lambda state: state.update({LAST: torch.ones(2, 4)})),
        "end in 1 number",
    ),
    "a head without bias": (
        lambda at: changed(at, lambda state: state.pop("mlp.layers.0.bias")),
        "expected mlp.layers.N.weight and mlp.layers.N.bias",
    ),
    "a larger vocabulary": (
        lambda at: (at / package.VOCABULARY).write_text(
            "\n".join([*package.WORDS, "one", "two", "three"])
        ),
        "image_reward.tokenizer: expected at most 17 tokens",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_give_one_line(case: str, tmp_path: Path) -> None:
    package.write_checkpoint(tmp_path, SIDE)
    spoil, message = BAD[case]
    spoil(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        options(tmp_path).check()
        options(tmp_path).build(Resources())
    assert "\n" not in str(caught.value)


def test_empty_paths_are_named() -> None:
    with pytest.raises(
        UserError, match=r"image_reward\.path: expected ImageReward\.pt, got an empty path"
    ):
        ImageRewardReward().check()
