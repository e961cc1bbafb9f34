"""Latents to pixels, as many at a time as fit into a device's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from branchgrpo.errors import UserError, one_line
from branchgrpo.types import U8

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Decoding:
    """Decodes a batch in parts; one that does not fit is halved and made again, and those after it
    are no larger."""

    def __init__(self, most: int):
        """most: latents at a time to begin with."""
        self.most = most
        self.halved = 0  # how often

    def run(self, pixels: Callable[[Tensor], Tensor], x0: Tensor) -> U8:
        """Latents [b, *S] to pixels u8 [b, F, H, W, 3]; `pixels` makes −1 … 1 [·, 3, F, H, W] of
        some of them. Raises UserError for a single latent that does not fit."""
        import torch

        found = list[U8]()
        first = 0
        while first < len(x0):
            part = x0[first : first + self.most]
            try:
                with torch.no_grad():
                    found.append(_bytes(pixels(part)))
                first += len(part)
                continue
            except torch.OutOfMemoryError as error:
                self._halve(part, error)
            # Here the error has gone, and with it what its frames held of the device.
            if x0.is_cuda:
                torch.cuda.empty_cache()  # of blocks for the larger size
        return np.concatenate(found)

    def _halve(self, part: Tensor, error: torch.OutOfMemoryError) -> None:
        if len(part) == 1:
            line = one_line(str(error).partition("\n")[0])
            raise UserError(
                f"model.decode_batch: out of memory even with 1 latent {list(part.shape[1:])} "
                f"decoded at a time on {part.device}: {line}"
            ) from error
        self.most, self.halved = len(part) // 2, self.halved + 1


def _bytes(pixels: Tensor) -> U8:
    """−1 … 1 [b, 3, F, H, W] as u8 [b, F, H, W, 3] in main memory."""
    import torch

    scaled = (pixels.float() / 2 + 0.5).clamp(0, 1)
    found: U8 = (scaled * 255).round().to(torch.uint8).permute(0, 2, 3, 4, 1).cpu().numpy()
    return found
