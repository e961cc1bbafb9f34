"""What is decoded at once is halved until it fits, with the same pixels in the same order."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor

from branchgrpo.errors import UserError
from branchgrpo.models.decoding import Decoding

LEVELS = torch.arange(11.0) / 5 - 1
"""−1 … 1: pictures 0, 25.5, 51, … 255 of 255, half to even."""
WANTED = [0, 26, 51, 76, 102, 128, 153, 178, 204, 230, 255]


class Pixels:
    """A decoder with memory for so many latents [·, 2]: each is a picture of one colour, one frame
    of 2 × 3. `asked` is how many each call had."""

    def __init__(self, room: int):
        self.room, self.asked = room, list[int]()
        self.made = list[weakref.ref[Tensor]]()
        self.living = list[int]()

    def __call__(self, x0: Tensor) -> Tensor:
        self.living.append(sum(one() is not None for one in self.made))
        self.asked.append(len(x0))
        wide = x0[:, :1].repeat(1, 18)
        self.made.append(weakref.ref(wide))
        if len(x0) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore.")
        return wide.reshape(-1, 3, 1, 2, 3)


def latents() -> Tensor:
    return torch.stack([LEVELS, torch.zeros(11)], 1)


def check(pixels: np.ndarray) -> None:
    assert pixels.dtype == np.uint8 and pixels.shape == (11, 1, 2, 3, 3)
    # 2⁻²⁴ decides which way halves go
    assert np.abs(pixels[:, 0, 0, 0, 0].astype(int) - WANTED).max() <= 1
    assert (pixels == pixels[:, :, :1, :1, :1]).all()


@pytest.mark.parametrize(
    ("most", "room", "asked"),
    [
        (16, 16, [11]),
        (4, 4, [4, 4, 3]),
        (16, 5, [11, 5, 5, 1]),
        (8, 3, [8, 4, 2, 2, 2, 2, 2, 1]),
        (2, 1, [2, *[1] * 11]),
    ],
)
def test_halved_until_it_fits(most: int, room: int, asked: list[int]) -> None:
    decoding, pixels = Decoding(most), Pixels(room)
    check(decoding.run(pixels, latents()))
    assert pixels.asked == asked
    assert decoding.halved == sum(count > room for count in asked)
    pixels.asked.clear()
    check(decoding.run(pixels, latents()))  # it is known by now
    assert max(pixels.asked) <= room


def test_what_did_not_fit_has_gone_before_the_next_try() -> None:
    pixels = Pixels(2)
    gc.disable()  # nothing must wait for it
    try:
        Decoding(11).run(pixels, latents())
    finally:
        gc.enable()
    assert pixels.asked[:3] == [11, 5, 2] and pixels.living[:3] == [0, 0, 0]


def test_one_latent_that_does_not_fit_is_one_line() -> None:
    with pytest.raises(
        UserError,
        match=r"^model\.decode_batch: out of memory even with 1 latent \[2\] decoded at a time on "
        r"cpu: CUDA out of memory\. Tried to allocate 2 GiB\.$",
    ):
        Decoding(16).run(Pixels(0), latents())
