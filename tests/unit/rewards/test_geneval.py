"""GenEval's networks: small random ones of transformers' classes, against transformers itself, one
picture after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from branchgrpo.errors import UserError
from branchgrpo.models.small.tokenizers import make_clip_tokenizer
from branchgrpo.rewards.base import Resources
from branchgrpo.rewards.geneval.colours import GREY
from branchgrpo.rewards.geneval.options import GenEvalReward
from branchgrpo.rewards.geneval.rules import COLOURS, Detection
from branchgrpo.types import Sample

pytestmark = pytest.mark.networks

NAMES = {0: "cup", 1: "dog", 2: "bird"}
SIZE = {"height": 64, "width": 64}
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 1, 48, 40, 3), dtype=np.uint8)


def detr(folder: Path) -> None:
    torch.manual_seed(0)
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=6,
        id2label=NAMES,
        label2id={name: index for index, name in NAMES.items()},
    )
    transformers.DetrForObjectDetection(config).eval().save_pretrained(folder)
    transformers.DetrImageProcessor(size=SIZE, do_pad=False).save_pretrained(folder)


def mask2former(folder: Path) -> None:
    torch.manual_seed(0)
    backbone = transformers.SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=6,
        id2label=NAMES,
        label2id={name: index for index, name in NAMES.items()},
    )
    transformers.Mask2FormerForUniversalSegmentation(config).eval().save_pretrained(folder)
    transformers.Mask2FormerImageProcessor(size=SIZE, do_resize=True).save_pretrained(folder)


def clip(folder: Path) -> None:
    torch.manual_seed(1)
    tokenizer = make_clip_tokenizer(40)
    text = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "max_position_embeddings": 40,
    }
    vision = {"image_size": 32, "patch_size": 8}
    narrow = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "projection_dim": 8}
    config = transformers.CLIPConfig(
        text_config=text | narrow | heads, vision_config=vision | narrow | heads, projection_dim=8
    )
    transformers.CLIPModel(config).eval().save_pretrained(folder)
    size = {"height": 32, "width": 32}
    images = transformers.CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False)
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("geneval")
    for make in (detr, mask2former, clip):
        make(root / make.__name__)
    return root


def reward(folders: Path, detector: str = "detr", **keys: Any) -> GenEvalReward:
    made = {"threshold": 0.05, "counting_threshold": 0.05, "batch": 2} | keys
    return GenEvalReward(detector=str(folders / detector), clip=str(folders / "clip"), **made)


def test_boxes_are_those_of_transformers_one_picture_after_the_other(folders: Path) -> None:
    found = reward(folders).build(Resources()).detect(PIXELS[:, 0])
    model = transformers.DetrForObjectDetection.from_pretrained(folders / "detr")
    processor = transformers.DetrImageProcessor.from_pretrained(folders / "detr")
    for picture, objects in zip(PIXELS[:, 0], found, strict=True):
        with torch.no_grad():
            out = model(**processor(images=Image.fromarray(picture), return_tensors="pt"))
        (wanted,) = processor.post_process_object_detection(
            out, threshold=0.05, target_sizes=[(48, 40)]
        )
        assert sum(map(len, objects.values())) == len(wanted["scores"]) > 0
        for name, many in objects.items():
            assert [one.confidence for one in many] == sorted(
                (one.confidence for one in many), reverse=True
            )
            rows = [
                index for index, label in enumerate(wanted["labels"]) if NAMES[int(label)] == name
            ]
            rows.sort(key=lambda index: -wanted["scores"][index])
            assert np.allclose([one.box for one in many], wanted["boxes"][rows], atol=1e-3)


def test_masks_give_boxes_around_them(folders: Path) -> None:
    scorer = reward(folders, "mask2former").build(Resources())
    assert scorer.masks
    found = [
        one for objects in scorer.detect(PIXELS[:, 0]) for many in objects.values() for one in many
    ]
    assert found
    for one in found:
        assert one.mask is not None and one.mask.shape == (48, 40)
        left, upper, right, lower = map(int, one.box)
        inside = one.mask[upper:lower, left:right]
        assert (inside.sum() == one.mask.sum() and inside.any(0).all()) or inside.any()
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


def test_a_colour_is_the_nearest_of_ten_texts(folders: Path) -> None:
    scorer = reward(folders).build(Resources())
    mask = np.zeros((48, 40), bool)
    mask[10:20, 5:25] = True
    objects = [Detection((5.2, 9.6, 25.1, 20.4), 0.9), Detection((5, 10, 25, 20), 0.9, mask)]
    assert scorer.colours
    found = scorer.colours.of(PIXELS[0, 0], objects, "cup")
    model = transformers.CLIPModel.from_pretrained(folders / "clip")
    processor = transformers.CLIPProcessor.from_pretrained(folders / "clip")
    grey = np.where(mask[..., None], PIXELS[0, 0], np.uint8(GREY))
    crops = [PIXELS[0, 0][9:20, 5:25], grey[10:20, 5:25]]
    for crop, got in zip(crops, found, strict=True):
        similar = []
        for colour in COLOURS:
            texts = [
                f"a photo of a {colour} cup",
                f"a photo of a {colour}-colored cup",
                f"a photo of a {colour} object",
            ]
            inputs = processor(
                text=texts, images=Image.fromarray(crop), padding=True, return_tensors="pt"
            )
            with torch.no_grad():
                out = model(**inputs)
            mean = torch.nn.functional.normalize(out.text_embeds.mean(0), dim=0)
            similar.append(float(out.image_embeds[0] @ mean))
        assert got == COLOURS[int(np.argmax(similar))]


@pytest.mark.parametrize("detector", ["detr", "mask2former"])
def test_scores_of_pictures_and_videos(folders: Path, detector: str) -> None:
    scorer = reward(folders, detector).build(Resources())
    name = next(iter(scorer.detect(PIXELS[:1, 0])[0]))
    there = Sample(prompt="x", metadata={"include": [{"class": name, "count": 1}]})
    absent = Sample(prompt="x", metadata={"exclude": [{"class": name, "count": 1}]})
    coloured = {"include": [{"class": name, "count": 1, "color": "red"}]}
    samples = [there, absent, Sample(prompt="x", metadata=coloured)]
    found = scorer.score(np.concatenate([PIXELS[:1]] * 3), samples)
    assert found["strict"][:2].tolist() == found["score"][:2].tolist() == [1.0, 0.0]
    assert found["strict"][2] == found["score"][2] in (0.0, 1.0)
    video = np.concatenate([PIXELS[0], PIXELS[0]])[None]
    assert scorer.score(video, [there])["score"].tolist() == [1.0]
    assert len(list(scorer.networks())) == 2


def test_what_cannot_be_scored_is_refused_before_anything_starts(folders: Path) -> None:
    def refused(metadata: dict[str, Any], **keys: Any) -> str:
        found = reward(folders, **keys).refusal(Sample(prompt="p", metadata=metadata), 0, 0)
        return f"{found.kind}: {found.detail}" if found else ""

    assert "the detector knows, got 'cat'" in refused({"include": [{"class": "cat"}]})
    assert refused({"include": [{"class": "cup", "color": "red"}]}) == ""
    without = GenEvalReward(detector=str(folders / "detr"))
    coloured = Sample(prompt="p", metadata={"include": [{"class": "cup", "color": "red"}]})
    assert "geneval.clip" in without.refusal(coloured, 0, 0).kind  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"rewards.geneval.detector: expected"):
        GenEvalReward(detector=str(folders / "nothing")).check()
    with pytest.raises(UserError, match=r"id2label|transformers cannot load"):
        GenEvalReward(detector=str(folders / "clip"), threshold=0.5).build(Resources())
