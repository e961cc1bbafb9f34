"""VideoAlign on a small Qwen2-VL, against a forward pass with the library's own parts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize
from transformers import (
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from branchgrpo.config.registry import load
from branchgrpo.errors import UserError
from branchgrpo.rewards import REGISTRY
from branchgrpo.rewards.base import Resources
from branchgrpo.rewards.video_align import VideoAlign, VideoAlignReward, sampled
from branchgrpo.rewards.video_align_files import NORMAL
from branchgrpo.rewards.video_align_text import TEMPLATE, TOKENS

pytestmark = pytest.mark.networks

TEXT = "\nvisual <|VQ_reward|>\nmotion <|MQ_reward|>\nprompt - {text_prompt} <|TA_reward|>\n"
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in "
    "message['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else "
    "%}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt "
    "%}<|im_start|>assistant\n{% endif %}"
)
PROMPTS = ["a red fox", "a blue house in the snow, in the evening", "waves"]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ROPE = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 1, 1]}


class RewardModel(Qwen2VLForConditionalGeneration):
    """Qwen2-VL with the head, as VideoAlign trains it."""

    def __init__(self, config: Qwen2VLConfig, outputs: int = 1):
        super().__init__(config)
        self.rm_head = torch.nn.Linear(config.text_config.hidden_size, outputs, bias=False)
        self.post_init()


def processor() -> Qwen2VLProcessor:
    """Bytes are tokens; the sizes of pictures are Qwen2-VL's."""
    made = Qwen2Tokenizer(
        vocab={character: index for index, character in enumerate(bytes_to_unicode().values())},
        merges=[],
    )
    made.add_special_tokens(
        {"eos_token": SPECIAL[2], "pad_token": SPECIAL[0], "additional_special_tokens": SPECIAL[1:]}
    )
    return Qwen2VLProcessor(
        Qwen2VLImageProcessor(),
        made,
        Qwen2VLVideoProcessor(cap_pixels_per_frame=False),
        chat_template=CHAT,
    )


def small_config(made: Qwen2VLProcessor, vocabulary: int) -> Qwen2VLConfig:
    ids = {
        f"{name}_token_id": made.tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in (("image", "image_pad"), ("video", "video_pad"))
    }
    ids |= {
        f"{name}_token_id": made.tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("vision_start", "vision_end")
    }
    vision = {"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2}
    return Qwen2VLConfig(
        text_config={**SIZES, "vocab_size": vocabulary, "rope_parameters": ROPE},
        vision_config=vision,
        **ids,
    )


def small_model(made: Qwen2VLProcessor, outputs: int) -> RewardModel:
    """Random weights that are large enough for every part to matter; the vocabulary is the
    tokenizer's, the three tokens included."""
    torch.manual_seed(outputs)
    model = RewardModel(small_config(made, len(made.tokenizer) + 3), outputs).eval()
    for name, value in model.named_parameters():
        spread = (
            1.0 if "embed_tokens" in name else value[0].numel() ** -0.5 if value.ndim > 1 else 0.1
        )
        spread *= 3.0 if "q_proj" in name or "k_proj" in name or "visual.blocks" in name else 1.0
        value.data = torch.randn_like(value) * spread + float(
            value.ndim == 1 and "norm" in name and "weight" in name
        )
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders base, one (a head of 1 row) and three (a head of 3), and a template."""
    at, made = tmp_path_factory.mktemp("video_align"), processor()
    made.save_pretrained(at / "base")
    small_config(made, 400).save_pretrained(at / "base")  # a larger vocabulary than training leaves
    for name, outputs in (("one", 1), ("three", 3)):
        small_model(made, outputs).save_pretrained(at / name)
    (at / "template.txt").write_text(TEXT, encoding="utf-8")
    return at


def options(folder: Path, name: str = "one", **more: object) -> VideoAlignReward:
    given = {
        "path": str(folder / name),
        "base": str(folder / "base"),
        "template": str(folder / "template.txt"),
        "dtype": "float32",
    }
    return VideoAlignReward(**(given | more))


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
    found = options(folder, name, batch=2).build(Resources()).score(pixels, PROMPTS)
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
    found = scorer.score(picture[None], ["a fox"])
    assert all(abs(float(found[score][0]) - wanted[score]) <= 1e-4 for score in wanted)


def test_our_own_template_is_scored_too(folder: Path) -> None:
    model, made = RewardModel.from_pretrained(folder / "three", outputs=3).eval(), processor()
    video = film(2, 336, 336, 6)
    wanted = normalised(
        straight(model, made=made, frames=video, size=(336, 336), prompt="a fox", text=TEMPLATE)
    )
    found = options(folder, "three", template="").build(Resources()).score(video[None], ["a fox"])
    assert all(abs(float(found[score][0]) - wanted[score]) <= 1e-4 for score in wanted)


def test_neither_batches_nor_neighbours_change_scores(folder: Path, scorer: VideoAlign) -> None:
    pixels = np.stack([film(1, 60, 60, seed) for seed in range(5)])
    prompts = [*PROMPTS, "a", "the same again, in many more words"]
    together = scorer.score(pixels, prompts)
    alone = options(folder, batch=1).build(Resources()).score(pixels, prompts)
    order = [4, 2, 0, 3, 1]
    mixed = scorer.score(pixels[order], [prompts[index] for index in order])
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
        .score(video[None], ["a fox"])
    )
    wanted = {
        "vq": (vq - 1) / 4,
        "mq": (mq - NORMAL["mq"][0]) / NORMAL["mq"][1],
        "ta": (ta + 1) / NORMAL["ta"][1],
    }
    assert all(abs(float(found[score][0]) - value) <= 1e-4 for score, value in wanted.items())


def test_half_precision_comes_close(folder: Path, scorer: VideoAlign) -> None:
    pixels = np.stack([film(1, 60, 60, seed) for seed in range(2)])
    half = options(folder, dtype="bfloat16").build(Resources()).score(pixels, PROMPTS[:2])
    assert 0 < np.abs(half["overall"] - scorer.score(pixels, PROMPTS[:2])["overall"]).max() < 0.2


def test_prompts_with_special_tokens_are_refused(folder: Path, scorer: VideoAlign) -> None:
    assert [options(folder).refusal(prompt, 0, 0) for prompt in PROMPTS] == [None] * len(PROMPTS)
    refused = options(folder).refusal("a <|VQ_reward|>", 0, 0)
    assert (
        refused
        and "special token" in refused.kind
        and refused.detail == "<|VQ_reward|> in 'a <|VQ_reward|>'"
    )
    with pytest.raises(UserError, match="expected prompts without special tokens"):
        scorer.score(film(1, 60, 60, 0)[None], ["<|video_pad|>"])


def changed(at: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(at / "one" / "model.safetensors")
    change(state)
    save_file(state, at / "one" / "model.safetensors", {"format": "pt"})


def replaced(at: Path, name: str, content: bytes) -> None:
    (at / "one" / "model.safetensors").unlink()
    (at / "one" / name).write_bytes(content)


def pickled(at: Path) -> None:
    replaced(at, "model.pth", b"")
    torch.save({"a": np.random.default_rng()}, at / "one" / "model.pth")


def unmerged(at: Path) -> None:
    replaced(at, "model.pth", b"")
    torch.save(
        {f"base_model.model.lm_head.lora_{part}.default.weight": torch.ones(1, 1) for part in "AB"},
        at / "one" / "model.pth",
    )


HEAD, QUERY = "rm_head.weight", "model.language_model.layers.1.self_attn.q_proj.weight"
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no checkpoint": (
        lambda at: (at / "one").rename(at / "gone"),
        "video_align.path: expected a VideoReward folder, found nothing",
    ),
    "no weights": (
        lambda at: (at / "one" / "model.safetensors").unlink(),
        r"expected \*.safetensors or model.pth in .*, got none",
    ),
    "adapters alone": (
        lambda at: replaced(at, "adapter_model.safetensors", b""),
        "adapter_model.safetensors alone: merge them first",
    ),
    "truncated": (
        lambda at: replaced(at, "model.safetensors", b"\x10\0\0\0\0\0\0\0{}"),
        "model.safetensors is truncated",
    ),
    "a pickle": (pickled, "weights_only"),
    "LoRA without its config": (
        unmerged,
        "expected peft_lora_config.lora_alpha in a model_config.json",
    ),
    "no head": (
        lambda at: changed(at, lambda state: state.pop(HEAD)),
        r"expected rm_head.weight \[1 or 3, 32\]",
    ),
    "a head of two": (
        lambda at: changed(at, lambda state: state.update({HEAD: torch.ones(2, 32)})),
        r"got \(2, 32\)",
    ),
    "a tensor less": (
        lambda at: changed(at, lambda state: state.pop(QUERY)),
        r"expected language_model.layers.1.self_attn.q_proj.weight \(32, 32\), got none",
    ),
    "few embeddings": (
        lambda at: changed(
            at,
            lambda state: state.update(
                {"model.language_model.embed_tokens.weight": torch.ones(9, 32)}
            ),
        ),
        "expected embeddings of 266 tokens, the tokenizer's of .*, got 9",
    ),
    "no base": (
        lambda at: (at / "base").rename(at / "gone"),
        "video_align.base: expected a Qwen2-VL folder, found nothing",
    ),
    "another base": (
        lambda at: (at / "base" / "config.json").write_text('{"model_type": "llama"}'),
        "expected model_type qwen2_vl .*, got llama",
    ),
    "no processor": (
        lambda at: (at / "base" / "processor_config.json").unlink(),
        "video_align.base: expected preprocessor_config.json or processor_config.json",
    ),
    "no chat template": (
        lambda at: (at / "base" / "chat_template.jinja").unlink(),
        "expected a chat template",
    ),
    "no template": (
        lambda at: (at / "template.txt").unlink(),
        "video_align.template: expected a text file, found nothing",
    ),
    "a template without a token": (
        lambda at: (at / "template.txt").write_text("{text_prompt} <|VQ_reward|>"),
        r"expected <\|MQ_reward\|> once in .*, found it 0 times",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_give_one_line(case: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    spoil, message = BAD[case]
    spoil(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        options(tmp_path).check()
        options(tmp_path).build(Resources())
    assert "\n" not in str(caught.value)
