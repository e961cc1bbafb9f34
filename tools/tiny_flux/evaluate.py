"""How well the model draws: OCR and background colour on the held-out captions, and a sheet of
samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from branchgrpo.models.small.flux import PIXELS
from branchgrpo.rewards.base import Resources
from branchgrpo.rewards.ocr import OcrReward
from branchgrpo.types import Sample
from tools.tiny_flux.prompts import held_out_captions
from tools.tiny_flux.render import BACKGROUNDS, COLOURS

if TYPE_CHECKING:
    from diffusers import FluxPipeline

GUIDANCES = (1.0, 2.0, 3.5)
STEPS = 20
BATCH = 64
SHEET_CAPTIONS = (
    "the number 14 in red on white",
    "the number 38 in black on yellow",
    "the number 59 in purple on cyan",
    "the number 72 in white on black",
    "the number 06 in blue on pink",
    "a red circle on white",
    "a blue star on yellow",
    "a red circle left of a blue square on white",
    "a green triangle above a orange star on black",
)
NUMBER_IN_CAPTION = r"the number (\d+)"


def draw(pipe: FluxPipeline, captions: Sequence[str], *, guidance: float, seed: int) -> np.ndarray:
    """Draw a picture of each caption with the pipeline: uint8 ``[count, PIXELS, PIXELS, 3]``."""
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    parts = [
        pipe(
            list(captions[start : start + BATCH]),
            height=PIXELS,
            width=PIXELS,
            guidance_scale=guidance,
            num_inference_steps=STEPS,
            max_sequence_length=pipe.tokenizer_2.model_max_length,
            generator=generator,
            output_type="np",
        ).images
        for start in range(0, len(captions), BATCH)
    ]
    return (np.concatenate(parts) * 255).round().astype(np.uint8)


def guidance_table(pipe: FluxPipeline, *, seed: int) -> dict[str, dict[str, float]]:
    """Return the mean OCR scores and the share of right backgrounds on the held-out captions, by
    guidance."""
    captions = held_out_captions()
    ocr = OcrReward(target=NUMBER_IN_CAPTION).build(Resources(threads=torch.get_num_threads()))
    table = {}
    for guidance in GUIDANCES:
        pictures = draw(pipe, captions, guidance=guidance, seed=seed)
        scores = ocr.score(pictures[:, None], [Sample(prompt=caption) for caption in captions])
        scores["background"] = right_backgrounds(pictures, captions)
        table[f"{guidance:.1f}"] = {
            name: round(float(values.mean()), 3) for name, values in scores.items()
        }
    return table


def right_backgrounds(pictures: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """Return 1 where the median colour of the outermost pixels is nearest to the background in the
    caption, else 0."""
    edge = np.ones((PIXELS, PIXELS), bool)
    edge[1:-1, 1:-1] = False
    colours = np.median(pictures[:, edge], axis=1)
    palette = np.array([COLOURS[name] for name in BACKGROUNDS])
    nearest = np.linalg.norm(colours[:, None] - palette, axis=2).argmin(axis=1)
    wanted = [BACKGROUNDS.index(caption.rsplit(" on ", 1)[-1]) for caption in captions]
    right: np.ndarray = (nearest == np.array(wanted)).astype(np.float32)
    return right


def sample_sheet(pipe: FluxPipeline, *, seed: int, columns: int = 5, scale: int = 2) -> Image.Image:
    """Draw a labelled row of pictures for each of a few captions, with the lowest and the highest
    guidance."""
    low, high = GUIDANCES[0], GUIDANCES[-1]
    label_width = 330
    head = 28
    gap = 4
    cell = PIXELS * scale + 4
    block = columns * cell + 3 * gap
    sheet = Image.new("RGB", (label_width + 2 * block, head + len(SHEET_CAPTIONS) * cell), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for row, caption in enumerate(SHEET_CAPTIONS):
        pen.text((8, head + row * cell + cell // 2), caption, fill="black", font=font, anchor="lm")
    captions = [caption for caption in SHEET_CAPTIONS for _ in range(columns)]
    for left, guidance in ((label_width, low), (label_width + block, high)):
        pen.text((left, head // 2), f"guidance {guidance}", fill="black", font=font, anchor="lm")
        for index, picture in enumerate(draw(pipe, captions, guidance=guidance, seed=seed)):
            row, column = divmod(index, columns)
            enlarged = Image.fromarray(picture).resize(
                (PIXELS * scale,) * 2, Image.Resampling.NEAREST
            )
            sheet.paste(enlarged, (left + column * cell, head + row * cell))
    return sheet
