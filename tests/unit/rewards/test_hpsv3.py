"""HPSv3 on a small Qwen2-VL in the published layout, against a forward pass with the library's own
parts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.records import record, records

from branchgrpo.config.registry import load
from branchgrpo.errors import UserError
from branchgrpo.rewards import REGISTRY
from branchgrpo.rewards.base import Resources
from branchgrpo.rewards.hpsv3 import HpsV3, HpsV3Reward
from branchgrpo.rewards.small.hpsv3 import TEXT, save_hpsv3, small_hpsv3
from branchgrpo.rewards.small.video_align import processor

if TYPE_CHECKING:
    from transformers import Qwen2VLProcessor

pytestmark = pytest.mark.networks

PROMPTS = ["a red fox", "a {blue} house in the snow, in the evening", "waves"]
MODULE = '''
import nothing_of_this_name

INSTRUCTION = """
Rate it. \n\nTextual prompt - {text_prompt}  \n"""

INSTRUCTION_debug = """
{text_prompt}
"""

prompt_with_special_token = """
Its rating: <|Reward|>

END
"""
raise RuntimeError("it is run")
'''


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_hpsv3(tmp_path_factory.mktemp("hpsv3"))


def options(keys: dict[str, str], **more: Any) -> HpsV3Reward:
    return HpsV3Reward(**({**keys, "dtype": "float32"} | more))


@pytest.fixture(scope="module")
def scorer(keys: dict[str, str]) -> HpsV3:
    options(keys).check()
    return options(keys).build(Resources())


@pytest.fixture(scope="module")
def model() -> Any:
    """What the file was made from, with the library's names."""
    return small_hpsv3(processor())


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """u8 [H, W, 3] of smooth noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    found = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(found)


def straight(model: Any, pixels: np.ndarray, size: tuple[int, int], prompt: str, text: str) -> Any:
    """The head's two numbers for one picture: the way the published code goes, step by step.
    Embeddings go to the language model alone, so that it counts positions."""
    made: Qwen2VLProcessor = processor()
    made.tokenizer.add_special_tokens({"additional_special_tokens": ["<|Reward|>"]})
    token = made.tokenizer.convert_tokens_to_ids("<|Reward|>")
    shown = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC)
    said = (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        + text.replace("{text_prompt}", prompt)
        + "<|im_end|>\n<|im_start|>assistant\n"
    )
    inputs = made(text=[said], images=[shown], return_tensors="pt")
    ids = inputs["input_ids"]
    assert (ids == model.config.image_token_id).sum() == size[0] * size[1] // 28**2
    weights = model.state_dict()
    with torch.no_grad():
        seen = model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
        embeddings = model.get_input_embeddings()(ids)
        embeddings[ids == model.config.image_token_id] = seen.pooler_output
        states = model.model.language_model(inputs_embeds=embeddings).last_hidden_state
        (x,) = states[ids == token]
        for layer in (0, 3, 5):
            x = weights[f"rm_head.{layer}.weight"] @ x + weights[f"rm_head.{layer}.bias"]
            x = x if layer == 5 else x.clamp(min=0)
    assert x.shape == (2,)
    return x.tolist()


def test_scores_are_those_of_a_straight_forward(
    keys: dict[str, str], scorer: HpsV3, model: Any
) -> None:
    """60 × 90 pixels become 392 × 560, the smallest sides of at least 200,704 of them; 640 × 640
    become 448 × 448."""
    assert load(REGISTRY["hpsv3"]) is HpsV3Reward and scorer.reports == ("score",)
    assert list(scorer.networks()) == [scorer.reader.model, scorer.head]
    for height, width, size in ((60, 90, (392, 560)), (640, 640, (448, 448))):
        pixels = np.stack([picture(height, width, seed) for seed in range(3)])
        found = scorer.score(pixels[:, None], records(PROMPTS))["score"]
        wanted = [
            straight(model, pixels=one, size=size, prompt=prompt, text=TEXT)[0]
            for one, prompt in zip(pixels, PROMPTS, strict=True)
        ]
        assert found.dtype == np.float32 and np.std(found) > 1e-2
        assert np.abs(found - wanted).max() <= 1e-4
    # the prompt matters, and so does the picture
    several = scorer.score(pixels[[0, 0, 1], None], records([*PROMPTS[:2], PROMPTS[0]]))["score"]
    assert len(set(np.round(several, 3))) == 3


def test_the_published_modules_text_is_read_and_nothing_run(
    keys: dict[str, str], model: Any, tmp_path: Path
) -> None:
    path = tmp_path / "data_collator_qwen.py"
    path.write_text(MODULE, encoding="utf-8")
    text = "\nRate it. \n\nTextual prompt - {text_prompt}  \n" + "\nIts rating: <|Reward|>\n\nEND\n"
    chosen = options(keys, template=str(path), path=str(Path(keys["path"]) / "HPSv3.safetensors"))
    chosen.check()
    assert chosen.text() == text
    one = picture(448, 448, 6)
    found = chosen.build(Resources()).score(one[None, None], records(["a fox"]))["score"]
    wanted = straight(model, pixels=one, size=(448, 448), prompt="a fox", text=text)
    assert abs(float(found[0]) - wanted[0]) <= 1e-4


def test_neither_batches_nor_neighbours_change_scores(keys: dict[str, str], scorer: HpsV3) -> None:
    pixels = np.stack([picture(60, 60, seed) for seed in range(4)])[:, None]
    prompts = [*PROMPTS, "the same again, in many more words than the others have"]
    together = scorer.score(pixels, records(prompts))["score"]
    alone = options(keys, batch=1).build(Resources()).score(pixels, records(prompts))["score"]
    assert np.abs(alone - together).max() <= 1e-4
    # a video's score is the mean over its frames
    film = np.concatenate([pixels[:1], pixels[1:2]], 1)
    parts = scorer.score(pixels[:2], records(["waves"] * 2))["score"]
    assert abs(scorer.score(film, records(["waves"]))["score"][0] - parts.mean()) <= 1e-4


def test_bfloat16_is_near(keys: dict[str, str], scorer: HpsV3) -> None:
    pixels = np.stack([picture(60, 60, seed) for seed in range(3)])[:, None]
    half = options(keys, dtype="bfloat16").build(Resources())
    assert half.head[0].weight.dtype == torch.float32
    found, wanted = (one.score(pixels, records(PROMPTS))["score"] for one in (half, scorer))
    assert np.abs(found - wanted).max() <= 0.2 * np.abs(wanted).max()


def test_prompts_with_special_tokens_are_refused(keys: dict[str, str], scorer: HpsV3) -> None:
    reason = options(keys).refusal(record("a <|Reward|>"), 32, 32)
    assert reason and reason.detail == "<|Reward|> in 'a <|Reward|>'"
    assert options(keys).refusal(record("a fox <3 | more"), 32, 32) is None
    with pytest.raises(UserError, match="expected prompts without special tokens"):
        scorer.score(picture(60, 60, 0)[None, None], records(["a <|im_end|>"]))


def test_the_footprint_is_of_the_published_sizes(keys: dict[str, str]) -> None:
    found = HpsV3Reward(batch=2).footprint(8)
    assert found.weights == 15.5e9 and found.flops == 4 * HpsV3Reward().footprint(1).flops


def changed(at: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(at / "HPSv3.safetensors")
    change(state)
    save_file(state, at / "HPSv3.safetensors")


QUERY = "model.layers.1.self_attn.q_proj.weight"
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no file": (
        lambda at: (at / "HPSv3.safetensors").unlink(),
        r"hpsv3.path: expected HPSv3.safetensors in .*, found none",
    ),
    "truncated": (
        lambda at: (at / "HPSv3.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}"),
        "HPSv3.safetensors is truncated",
    ),
    "no head": (
        lambda at: changed(
            at, lambda state: [state.pop(name) for name in [*state] if "rm_head" in name]
        ),
        "expected rm_head.… and a Qwen2-VL's weights in .*, got 0 of the head",
    ),
    "VideoAlign's head": (
        lambda at: changed(at, lambda state: state.update({"rm_head.0.weight": torch.ones(3, 32)})),
        r"hpsv3.path: expected shape \(1024, 32\) 0.weight, got shape \(3, 32\)",
    ),
    "a tensor less": (
        lambda at: changed(at, lambda state: state.pop(QUERY)),
        r"expected language_model.layers.1.self_attn.q_proj.weight \(32, 32\), got none",
    ),
    "few embeddings": (
        lambda at: changed(
            at, lambda state: state.update({"model.embed_tokens.weight": torch.ones(9, 32)})
        ),
        "expected embeddings of 264 tokens, the tokenizer's of .*, got 9",
    ),
    "another base": (
        lambda at: (at / "base" / "config.json").write_text('{"model_type": "llama"}'),
        "hpsv3.base: expected model_type qwen2_vl .*, got llama",
    ),
    "no base": (
        lambda at: (at / "base").rename(at / "gone"),
        "hpsv3.base: expected a Qwen2-VL folder, found nothing",
    ),
    "no template": (
        lambda at: (at / "template.txt").unlink(),
        "hpsv3.template: expected hpsv3/dataset/data_collator_qwen.py .*, found nothing",
    ),
    "a template without the token": (
        lambda at: (at / "template.txt").write_text("{text_prompt}"),
        r"hpsv3.template: expected <\|Reward\|> once in .*, found it 0 times",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_give_one_line(case: str, keys: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(keys["path"], tmp_path, dirs_exist_ok=True)
    own = {name: value.replace(keys["path"], str(tmp_path)) for name, value in keys.items()}
    spoil, message = BAD[case]
    spoil(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        options(own).check()
        options(own).build(Resources())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["INSTRUCTION = 'x'\n", "INSTRUCTION = (\n", "\0"])
def test_modules_without_the_text_are_refused(
    keys: dict[str, str], tmp_path: Path, source: str
) -> None:
    path = tmp_path / "other.py"
    path.write_text(source, encoding="utf-8")
    with pytest.raises(UserError, match=r"hpsv3.template: expected hpsv3/dataset/") as caught:
        options(keys, template=str(path)).check()
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"hpsv3.template: expected .*, got an empty path"):
        options(keys, template="").check()
