"""VideoAlign on a small Qwen2-VL, against a forward pass with the library's own parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.records import record, records
from support.small_video_align import (
    TEXT,
    options,
    written,
)
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from branchgrpo.config.registry import load
from branchgrpo.errors import UserError
from branchgrpo.rewards import REGISTRY
from branchgrpo.rewards.base import Resources
from branchgrpo.rewards.small.video_align import RewardModel, processor, small_model
from branchgrpo.rewards.video_align import VideoAlign, VideoAlignReward, sampled
from branchgrpo.rewards.video_align_files import NORMAL
from branchgrpo.rewards.video_align_text import TEMPLATE, TOKENS

if TYPE_CHECKING:
    from transformers import Qwen2VLProcessor

pytestmark = pytest.mark.networks

PROMPTS = ["a red fox", "a blue house in the snow, in the evening", "waves"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("video_align"))


@pytest.fixture(scope="module")
def scorer(folder: Path) -> VideoAlign:
    return options(folder).build(Resources())


def film(frames: int, height: int, width: int, seed: int) -> np.ndarray:
    """A video u8 [F, H, W, 3] of smooth noise that changes from frame to frame."""
    coarse = np.random.default_rng(seed).integers(0, 256, (frames, 5, 5, 3), np.uint8)
    return np.stack(
        [
            np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
            for frame in coarse
        ]
    )


def straight(
    model: Any,
    made: Qwen2VLProcessor,
    frames: np.ndarray,
    size: tuple[int, int],
    prompt: str,
    text: str = TEXT,
) -> list[float]:
    """The head's three numbers for one video: the way the published code goes, step by step.

    Frames are those that are to be scored. Embeddings go to the language model alone, so that it
    counts positions.
    """
    made.tokenizer.add_tokens(list(TOKENS.values()), special_tokens=True)
    video = resize(
        torch.from_numpy(frames).permute(0, 3, 1, 2),
        list(size),
        interpolation=InterpolationMode.BICUBIC,
        antialias=True,
    ).float()
    said = (
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>"
        + text.replace("{text_prompt}", prompt)
        + "<|im_end|>\n<|im_start|>assistant\n"
    )
    inputs = made(text=[said], videos=[video], return_tensors="pt")
    ids = inputs["input_ids"]
    with torch.no_grad():
        parts = model.model.visual(
            inputs["pixel_values_videos"], grid_thw=inputs["video_grid_thw"]
        ).pooler_output
        embeddings = model.get_input_embeddings()(ids)
        embeddings[ids == model.config.video_token_id] = parts
        numbers = model.rm_head(
            model.model.language_model(inputs_embeds=embeddings).last_hidden_state
        )[0]
    found = [
        numbers[ids[0] == made.tokenizer.convert_tokens_to_ids(token)] for token in TOKENS.values()
    ]
    assert [len(rows) for rows in found] == [1, 1, 1]
    return [
        float(rows[0, place if numbers.shape[1] == 3 else 0]) for place, rows in enumerate(found)
    ]


def normalised(raw: list[float]) -> dict[str, float]:
    vq = (raw[0] - 3.6757) / 2.2476
    mq = (raw[1] - 1.1646) / 1.3811
    ta = (raw[2] - 2.8105) / 2.5121
    return {"overall": vq + mq + ta, "vq": vq, "mq": mq, "ta": ta}


@pytest.mark.parametrize("name", ["one", "three"])
def test_scores_are_those_of_a_straight_forward(folder: Path, name: str) -> None:
    """9 frames at 16 a second: 4 are scored. 60 × 90 pixels become 280 × 392, the nearest sides of
    at least 100,352 pixels."""
    model = RewardModel.from_pretrained(folder / name, outputs=1 if name == "one" else 3).eval()
    made = processor()
    pixels = np.stack([film(9, 60, 90, seed) for seed in range(3)])
    found = options(folder, name, batch=2).build(Resources()).score(pixels, records(PROMPTS))
    wanted = [
        normalised(
            straight(model, made=made, frames=video[[0, 3, 5, 8]], size=(280, 392), prompt=prompt)
        )
        for video, prompt in zip(pixels, PROMPTS, strict=True)
    ]
    for score in ("overall", "vq", "mq", "ta"):
        assert found[score].dtype == np.float32
        difference = np.abs(found[score] - [one[score] for one in wanted]).max()
        assert difference <= 1e-4, (score, difference)
        assert np.std(found[score]) > 1e-2


def test_a_picture_is_a_video_that_stands_still(folder: Path, scorer: VideoAlign) -> None:
    assert list(scorer.networks()) == [scorer.reader.model]
    """640 × 640 pixels are too many: 448 × 448 are the largest sides of at most 200,704."""
    model, made = RewardModel.from_pretrained(folder / "one").eval(), processor()
    picture = film(1, 640, 640, 5)
    wanted = normalised(
        straight(
            model,
            made=made,
            frames=np.concatenate([picture, picture]),
            size=(448, 448),
            prompt="a fox",
        )
    )
    found = scorer.score(picture[None], records(["a fox"]))
    assert all(abs(float(found[score][0]) - wanted[score]) <= 1e-4 for score in wanted)


def test_our_own_template_is_scored_too(folder: Path) -> None:
    model, made = RewardModel.from_pretrained(folder / "three", outputs=3).eval(), processor()
    video = film(2, 336, 336, 6)
    wanted = normalised(
        straight(model, made=made, frames=video, size=(336, 336), prompt="a fox", text=TEMPLATE)
    )
    found = (
        options(folder, "three", template="")
        .build(Resources())
        .score(video[None], records(["a fox"]))
    )
    assert all(abs(float(found[score][0]) - wanted[score]) <= 1e-4 for score in wanted)


def test_neither_batches_nor_neighbours_change_scores(folder: Path, scorer: VideoAlign) -> None:
    pixels = np.stack([film(1, 60, 60, seed) for seed in range(5)])
    prompts = [*PROMPTS, "a", "the same again, in many more words"]
    together = scorer.score(pixels, records(prompts))
    alone = options(folder, batch=1).build(Resources()).score(pixels, records(prompts))
    order = [4, 2, 0, 3, 1]
    mixed = scorer.score(pixels[order], records([prompts[index] for index in order]))
    for score, values in together.items():
        assert np.abs(alone[score] - values).max() <= 1e-5
        assert np.abs(mixed[score] - values[order]).max() <= 1e-5


def test_the_options_choose_what_trains_and_what_is_reported(folder: Path) -> None:
    chosen = options(folder, train_on="mq", report=("ta", "mq"))
    scorer = chosen.build(Resources())
    assert (scorer.trains_on, scorer.reports, chosen.reported()) == (
        "mq",
        ("ta", "mq"),
        ("ta", "mq"),
    )
    assert load(REGISTRY["video_align"]) is VideoAlignReward


@pytest.mark.parametrize(
    ("count", "more", "places"),
    [
        (1, {}, [0]),
        (2, {}, [0, 1]),
        (3, {}, [0, 2]),  # 2 of 3: an even number
        (5, {}, [0, 1, 3, 4]),  # at least 4
        (33, {}, [0, 11, 21, 32]),  # 33 / 16 · 2 = 4.1
        (81, {}, [0, 9, 18, 27, 36, 44, 53, 62, 71, 80]),  # 10.1 → 10, every 8.9
        (8, {"fps": 16.0}, list(range(8))),
        (9, {"video_fps": 8.0, "fps": 4.0}, [0, 3, 5, 8]),  # 4.5 → 4
        (10, {"frames": 4}, [0, 3, 6, 9]),
        (10, {"frames": 1}, [0, 9]),
        (3, {"frames": 8}, [0, 1, 2]),
    ],
)
def test_frames_are_evenly_spaced(count: int, more: dict[str, float], places: list[int]) -> None:
    assert sampled(count, VideoAlignReward(path="", **more)) == places


def peft_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As transformers 4.45 and peft named them, which wrote the published file."""
    renamed = {
        name.replace("model.language_model.", "model."): value for name, value in state.items()
    }
    return {
        name.replace("base_model.model.model.visual.", "base_model.model.visual."): value
        for name, value in renamed.items()
    }


@pytest.mark.parametrize("root", [True, False])
@pytest.mark.parametrize("stabilised", [False, True])
def test_the_published_layout_is_merged(
    folder: Path, tmp_path: Path, stabilised: bool, root: bool
) -> None:
    """Against peft's own forward, LoRA unmerged. An older step lies beside it and does not
    count."""
    from peft import LoraConfig, get_peft_model

    made, config = processor(), {"lora_alpha": 6, "use_rslora": stabilised}
    lora = LoraConfig(
        r=3, target_modules=["q_proj", "v_proj", "down_proj"], lora_alpha=6, use_rslora=stabilised
    )
    adapted = get_peft_model(small_model(made, 1), lora).eval()
    for name, value in adapted.named_parameters():
        if "lora_B" in name:
            value.data = torch.randn_like(value) * 0.3
    place = tmp_path / "checkpoint-11"
    place.mkdir()
    torch.save(peft_names(adapted.state_dict()), place / "model.pth")
    (tmp_path / "checkpoint-9").mkdir()
    torch.save({"old": torch.ones(1)}, tmp_path / "checkpoint-9" / "model.pth")
    statistics = {
        f"{name}_{part}": value
        for name, part, value in (("VQ", "mean", 1.0), ("VQ", "std", 4.0), ("TA", "mean", -1.0))
    }
    (tmp_path / "model_config.json").write_text(
        json.dumps({"peft_lora_config": config, "inference_config": statistics}), encoding="utf-8"
    )
    video = film(2, 336, 336, 7)
    vq, mq, ta = straight(
        adapted.base_model.model, made=made, frames=video, size=(336, 336), prompt="a fox"
    )
    found = (
        options(folder, path=str(tmp_path if root else place))
        .build(Resources())
        .score(video[None], records(["a fox"]))
    )
    wanted = {
        "vq": (vq - 1) / 4,
        "mq": (mq - NORMAL["mq"][0]) / NORMAL["mq"][1],
        "ta": (ta + 1) / NORMAL["ta"][1],
    }
    assert all(abs(float(found[score][0]) - value) <= 1e-4 for score, value in wanted.items())


def test_half_precision_comes_close(folder: Path, scorer: VideoAlign) -> None:
    pixels = np.stack([film(1, 60, 60, seed) for seed in range(2)])
    half = options(folder, dtype="bfloat16").build(Resources()).score(pixels, records(PROMPTS[:2]))
    assert (
        0
        < np.abs(half["overall"] - scorer.score(pixels, records(PROMPTS[:2]))["overall"]).max()
        < 0.2
    )


def test_prompts_with_special_tokens_are_refused(folder: Path, scorer: VideoAlign) -> None:
    assert [options(folder).refusal(record(prompt), 0, 0) for prompt in PROMPTS] == [None] * len(
        PROMPTS
    )
    refused = options(folder).refusal(record("a <|VQ_reward|>"), 0, 0)
    assert (
        refused
        and "special token" in refused.kind
        and refused.detail == "<|VQ_reward|> in 'a <|VQ_reward|>'"
    )
    with pytest.raises(UserError, match="expected prompts without special tokens"):
        scorer.score(film(1, 60, 60, 0)[None], records(["<|video_pad|>"]))
