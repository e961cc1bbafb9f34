"""HPSv2, PickScore, CLIPScore and the aesthetic rating against the packages they come from, on
small random networks."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.records import records
from support.small_clips import (
    aesthetic_reward,
    clip_reward,
    hps_reward,
    refused,
)

from branchgrpo.rewards.aesthetic import AestheticReward
from branchgrpo.rewards.base import Resources, RewardOptions
from branchgrpo.rewards.clip import ClipReward
from branchgrpo.rewards.hps import HpsReward
from branchgrpo.rewards.pickscore import PickScoreReward
from branchgrpo.rewards.small.clips import NARROW_H, head_weights, save_clip

pytestmark = pytest.mark.networks

SIZES = [(300, 200), (128, 256), (333, 500), (64, 64), (225, 97), (90, 400), (224, 224), (512, 448)]
PROMPTS = [
    "a red cube on a green table",
    "A Portrait of an Old Sailor, dramatic light, 35mm",
    "café &amp; crème brûlée — naïve “style”",
    "two dogs' tails; it's raining!! 12345",
    "very " * 120 + "long",
    "",
    "  spaces\tand\nlines  ",
    "猫 on a roof",
]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """Coarse coloured blocks and fine noise: u8 [H, W, 3]."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (5, 4, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.NEAREST
    )
    return np.clip(np.asarray(coarse) + draw.normal(0, 25, (height, width, 3)), 0, 255).astype(
        np.uint8
    )


PICTURES = [picture(*size, seed) for seed, size in enumerate(SIZES)]
SAME_SIZE = np.stack([picture(40, 56, seed) for seed in range(8)])[:, None]  # [8, 1, H, W, 3]


def one_by_one(
    options: RewardOptions, pictures: list[np.ndarray], prompts: list[str], device: str = "cpu"
) -> np.ndarray:
    scorer = options.build(Resources(device=device))
    return np.concatenate(
        [
            scorer.score(image[None, None], records([prompt]))["score"]
            for image, prompt in zip(pictures, prompts, strict=True)
        ]
    )


def close(found: np.ndarray, expected: Any, tolerance: float) -> None:
    """Equal within the tolerance, on scores that a wrong preparation would change by far more."""
    expected = np.array(expected)
    assert found.shape == expected.shape and found.dtype == np.float32
    assert expected.std() > 300 * tolerance, expected
    assert np.abs(found - expected).max() <= tolerance, np.abs(found - expected).max()


# HPSv2 and CLIPScore: open_clip


@pytest.fixture(scope="module")
def hps(tmp_path_factory: pytest.TempPathFactory) -> HpsReward:
    return hps_reward(tmp_path_factory.mktemp("hps"))


@pytest.fixture(scope="module")
def img_score(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """hpsv2.img_score with its ViT-H-14 made narrow, from a copy of the package: its wheel lacks
    the tokenizer's vocabulary, which open_clip ships."""
    folder = tmp_path_factory.mktemp("package")
    package, library = (Path(str(find_spec(name).origin)).parent for name in ("hpsv2", "open_clip"))
    copy = shutil.copytree(package, folder / "hpsv2") / "src" / "open_clip"
    shutil.copy(library / "bpe_simple_vocab_16e6.txt.gz", copy)
    (copy / "model_configs" / "ViT-H-14.json").write_text(json.dumps(NARROW_H))
    _forget_the_package()  # another test may have looked into it
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("HPS_ROOT", str(folder / "root"))
        patch.setenv("TOKENIZERS_PARALLELISM", "false")  # the package sets it for good
        # imported by oversight, and it needs Tk
        patch.setitem(sys.modules, "turtle", ModuleType("turtle"))
        sys.modules["turtle"].forward = None
        module = import_module("hpsv2.img_score")
        patch.setattr(module, "device", "cpu")
        # as its initialize_model, but no download
        keys = {
            "precision": "amp",
            "device": "cpu",
            "light_augmentation": True,
            "aug_cfg": {},
            "output_dict": True,
        }
        network, _, preparation = module.create_model_and_transforms("ViT-H-14", None, **keys)
        module.model_dict.update(model=network, preprocess_val=preparation)
        yield module
    _forget_the_package()


def _forget_the_package() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "hpsv2"]:
        del sys.modules[name]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("device", DEVICES)
def test_hps_equals_the_package(hps: HpsReward, img_score: ModuleType, device: str) -> None:
    expected = [
        img_score.score(Image.fromarray(image), prompt, cp=hps.path)[0]
        for image, prompt in zip(PICTURES, PROMPTS, strict=True)
    ]
    close(one_by_one(hps, PICTURES, PROMPTS, device), expected, 1e-4)


@pytest.mark.filterwarnings("ignore")
def test_hps_pads_what_needs_no_resize(hps: HpsReward, img_score: ModuleType) -> None:
    """The package fails on such pictures; with the black border drawn in, it scores them."""
    wide, bordered = picture(120, 224, 0), np.zeros((224, 224, 3), np.uint8)
    bordered[52:172] = wide
    expected = img_score.score(Image.fromarray(bordered), "a cube", cp=hps.path)[0]
    assert one_by_one(hps, [wide], ["a cube"])[0] == pytest.approx(expected, abs=1e-5)


def test_hps_finds_the_checkpoint_where_the_package_keeps_it(
    hps: HpsReward, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPS_ROOT", str(tmp_path / "root"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for version, name in (("v2.0", "HPS_v2_compressed.pt"), ("v2.1", "HPS_v2.1_compressed.pt")):
        options = HpsReward(version=version)
        assert name in refused(options)
        kept = tmp_path / "hub" / "models--xswu--HPSv2"
        for file in (
            kept / "snapshots" / "abc" / name,
            kept / "refs" / "main",
            tmp_path / "root" / name,
        ):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"abc" if file.name == "main" else Path(hps.path).read_bytes())
            if file.name == "main":
                assert options.checkpoint() == kept / "snapshots" / "abc" / name
        assert options.checkpoint() == tmp_path / "root" / name


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipReward:
    return clip_reward(tmp_path_factory.mktemp("clip"))


@pytest.mark.parametrize("device", DEVICES)
def test_clip_equals_open_clip(clip: ClipReward, device: str) -> None:
    import open_clip

    folder = f"local-dir:{Path(clip.path).parent}"
    network, _, preparation = open_clip.create_model_and_transforms(folder)
    tokenizer, expected = open_clip.get_tokenizer(folder), []
    for image, prompt in zip(PICTURES, PROMPTS, strict=True):
        with torch.no_grad():
            seen, read = network.eval()(
                preparation(Image.fromarray(image))[None], tokenizer([prompt])
            )[:2]
        expected.append((seen @ read.T).item())
    close(one_by_one(clip, PICTURES, PROMPTS, device), expected, 1e-4)


def test_clip_knows_open_clip_s_models(clip: ClipReward) -> None:
    for name in ("ViT-B-32", "ViT-L-14-quickgelu", "ViT-H-14"):
        ClipReward(path=clip.path, model=name).check()
    assert "'ViT-B-33'" in refused(ClipReward(path=clip.path, model="ViT-B-33"))


# PickScore and aesthetic: transformers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip-model"))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scale", ["none", "logit"])
def test_pickscore_equals_transformers(folder: Path, scale: str, device: str) -> None:
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(folder)
    processor = CLIPProcessor.from_pretrained(folder)
    expected = []
    for image, prompt in zip(PICTURES, PROMPTS, strict=True):
        inputs = processor(
            text=[prompt],
            images=[Image.fromarray(image)],
            padding=True,
            truncation=True,
            max_length=16,
            return_tensors="pt",
        )
        with torch.no_grad():
            found = model(**inputs)
        expected.append(
            found.logits_per_image.item()
            if scale == "logit"
            else (found.image_embeds * found.text_embeds).sum().item()
        )
    close(
        one_by_one(PickScoreReward(path=str(folder), scale=scale), PICTURES, PROMPTS, device),
        expected,
        1e-4,
    )


def test_the_processor_may_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        kind = "model" if file.name in ("config.json", "model.safetensors") else "processor"
        (tmp_path / kind).mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / kind)
    apart = PickScoreReward(path=str(tmp_path / "model"), processor=str(tmp_path / "processor"))
    apart.check()
    np.testing.assert_array_equal(
        one_by_one(apart, PICTURES, PROMPTS),
        one_by_one(PickScoreReward(path=str(folder)), PICTURES, PROMPTS),
    )
    assert "rewards.pickscore.processor: expected preprocessor_config.json" in refused(
        PickScoreReward(path=str(tmp_path / "model"))
    )


@pytest.fixture(scope="module")
def aesthetic(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AestheticReward:
    return aesthetic_reward(folder, tmp_path_factory.mktemp("head"))


@pytest.mark.parametrize("device", DEVICES)
def test_aesthetic_in_closed_form(folder: Path, aesthetic: AestheticReward, device: str) -> None:
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(folder)
    processor = CLIPProcessor.from_pretrained(folder)
    expected = []
    weights = {name: tensor.double().numpy() for name, tensor in head_weights(24).items()}
    for image in PICTURES:
        with torch.no_grad():
            x = (
                model.get_image_features(
                    processor(images=Image.fromarray(image), return_tensors="pt")["pixel_values"]
                )
                .pooler_output[0]
                .double()
                .numpy()
            )
        x = x / np.sqrt((x**2).sum())
        for layer in (0, 2, 4, 6, 7):
            x = weights[f"layers.{layer}.weight"] @ x + weights[f"layers.{layer}.bias"]
        expected.append(x[0])
    close(one_by_one(aesthetic, PICTURES, PROMPTS, device), expected, 1e-4)


# All of them


@pytest.fixture(params=["hps", "clip", "pickscore", "aesthetic"])
def reward(request: pytest.FixtureRequest) -> Any:
    if request.param == "pickscore":
        return PickScoreReward(path=str(request.getfixturevalue("folder")))
    return request.getfixturevalue(request.param)


def test_neither_batches_nor_neighbours_change_a_score(reward: Any) -> None:
    reward.check()
    whole, single = (
        reward.model_copy(update={"batch": batch})
        .build(Resources())
        .score(SAME_SIZE, records(PROMPTS))["score"]
        for batch in (8, 1)
    )
    close(single, whole, 1e-5)
    order = [3, 0, 3, 7, 5]
    again = reward.build(Resources()).score(SAME_SIZE[order], records([PROMPTS[i] for i in order]))[
        "score"
    ]
    np.testing.assert_allclose(again, whole[order], atol=1e-5)


def test_a_video_scores_the_mean_of_its_frames(reward: Any) -> None:
    scorer = reward.model_copy(update={"frames": 2, "batch": 3}).build(Resources())
    single = scorer.score(SAME_SIZE, records([PROMPTS[i // 4] for i in range(8)]))["score"].reshape(
        2, 4
    )
    found = scorer.score(SAME_SIZE.reshape(2, 4, 40, 56, 3), records(PROMPTS[:2]))["score"]
    np.testing.assert_allclose(found, single[:, [1, 3]].mean(1), atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dtype_is_that_of_the_network(reward: Any, dtype: str) -> None:
    exact, rounded = (
        reward.model_copy(update={"dtype": kind})
        .build(Resources())
        .score(SAME_SIZE, records(PROMPTS))["score"]
        for kind in ("float32", dtype)
    )
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - exact).max() < 0.1 * max(1, np.abs(exact).max())
