"""The embedded model, its tokenizers and its prompt lists."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import branchgrpo
from branchgrpo.models.tiny_flux import (
    DIGITS,
    PIXELS,
    WORDS,
    TinyFluxSizes,
    build_tiny_flux,
    make_clip_tokenizer,
    make_t5_tokenizer,
    make_tiny_flux,
)
from branchgrpo.pretrain.prompts import held_out_captions, held_out_numbers, training_captions
from branchgrpo.pretrain.render import draw_set
from branchgrpo.pretrain.text import CaptionTokens, embed

if TYPE_CHECKING:
    from diffusers import FluxPipeline

os.environ.setdefault("HF_HUB_OFFLINE", "1")

ASSETS = Path(branchgrpo.__file__).parent / "assets"
LARGEST_BYTES = 6_000_000
NUMBER = "the number 38 in black on yellow"
SHAPES = "a red circle left of a blue square on white"
OTHER_SIZES = TinyFluxSizes(
    vae_channels=(8, 16),
    latent_channels=4,
    double_blocks=2,
    single_blocks=1,
    heads=2,
    head_dim=16,
    rope_axes=(4, 6, 6),
    clip_width=32,
    clip_layers=1,
    t5_width=48,
    t5_layers=1,
)


@pytest.fixture(scope="module")
def embedded() -> FluxPipeline:
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(ASSETS / "tiny-flux")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_size() -> None:
    sizes = [path.stat().st_size for path in (ASSETS / "tiny-flux").rglob("*") if path.is_file()]
    assert 1_000_000 < sum(sizes) <= LARGEST_BYTES


def test_draws_on_a_wanted_background(embedded: FluxPipeline) -> None:
    prompts = ["the number 38 in black on yellow", "the number 71 in red on white"]
    pictures = embedded(
        prompts,
        height=PIXELS,
        width=PIXELS,
        guidance_scale=1.0,
        num_inference_steps=20,
        max_sequence_length=16,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    assert pictures.shape == (2, PIXELS, PIXELS, 3)
    corner = pictures[:, :2, :2].mean((1, 2))
    assert corner[0, 0] > 0.7 and corner[0, 2] < 0.4, f"expected yellow, got {corner[0]}"
    assert corner[1].min() > 0.75, f"expected white, got {corner[1]}"


def test_every_word_and_digit_is_one_token(embedded: FluxPipeline) -> None:
    clip, t5 = embedded.tokenizer, embedded.tokenizer_2
    for word in WORDS:
        assert clip.tokenize(word) == [f"{word}</w>"]
        assert t5.tokenize(word) == [f"▁{word}"]
    assert clip.tokenize("number 38 in") == ["number</w>", "3</w>", "8</w>", "in</w>"]
    assert t5.tokenize("number 38 in") == ["▁number", "▁", "3", "8", "▁in"]
    assert len({clip.convert_tokens_to_ids(f"{digit}</w>") for digit in DIGITS}) == 10
    assert len({t5.convert_tokens_to_ids(digit) for digit in DIGITS}) == 10


def test_tokenizers_are_built_as_they_were_for_the_weights(embedded: FluxPipeline) -> None:
    assert make_clip_tokenizer().get_vocab() == embedded.tokenizer.get_vocab()
    assert make_t5_tokenizer().get_vocab() == embedded.tokenizer_2.get_vocab()


def test_unknown_words_become_unknown_tokens(embedded: FluxPipeline) -> None:
    for tokenizer in (embedded.tokenizer, embedded.tokenizer_2):
        assert tokenizer.unk_token_id in tokenizer("the zebra").input_ids
        assert tokenizer.unk_token_id not in tokenizer(SHAPES).input_ids


def test_training_encodes_captions_as_the_pipeline_does(embedded: FluxPipeline) -> None:
    captions = [NUMBER, SHAPES, ""]
    with torch.no_grad():
        sequence, pooled = embed(embedded.text_encoder, embedded.text_encoder_2, CaptionTokens.of(embedded, captions))
        expected_sequence, expected_pooled, _ = embedded.encode_prompt(captions, max_sequence_length=16)
    assert torch.equal(sequence, expected_sequence)
    assert torch.equal(pooled, expected_pooled)
    assert not torch.allclose(pooled[0], pooled[1])


def test_builds_and_loads_other_sizes(tmp_path: Path) -> None:
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(build_tiny_flux(tmp_path, OTHER_SIZES, seed=3))
    pipe.set_progress_bar_config(disable=True)
    assert pipe.transformer.config.in_channels == 16
    assert pipe.text_encoder.dtype == pipe.transformer.dtype == torch.float32
    picture = pipe(NUMBER, height=32, width=32, num_inference_steps=2, max_sequence_length=16, output_type="np").images
    assert picture.shape == (1, 32, 32, 3)


def test_the_seed_decides_the_weights() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (make_tiny_flux(OTHER_SIZES, seed=seed).transformer.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="head_dim"):
        TinyFluxSizes(rope_axes=(8, 8, 8))
    with pytest.raises(ValueError, match="text_heads"):
        TinyFluxSizes(t5_width=66)


def test_prompt_lists() -> None:
    lists = {name: (ASSETS / "prompts" / f"{name}.txt").read_text().splitlines() for name in ("train", "heldout")}
    assert lists == {"train": training_captions(), "heldout": held_out_captions()}
    numbers = {name: {re.findall(r"\d+", caption)[0] for caption in captions} for name, captions in lists.items()}
    assert numbers["heldout"] == set(held_out_numbers()) and len(numbers["heldout"]) == 16
    assert len(numbers["train"]) == 84 and not numbers["train"] & numbers["heldout"]
    assert len(set(lists["heldout"])) == 256
    for place in (0, 1):
        assert {number[place] for number in numbers["heldout"]} == set(DIGITS)
    for caption in lists["train"] + lists["heldout"]:
        _, foreground, background = re.findall(r"\d+|(?<=in )\w+|(?<=on )\w+", caption)
        assert foreground != background


def test_drawings_follow_the_seed() -> None:
    first, again, other = draw_set(20, 1), draw_set(20, 1), draw_set(20, 2)
    assert first.captions == again.captions != other.captions
    assert np.array_equal(first.pictures, again.pictures)
    assert {number is None for number in first.numbers} == {True, False}
