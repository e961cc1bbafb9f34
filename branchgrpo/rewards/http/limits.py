"""What may be scored at once: bounds that keep a scorer's memory in proportion to the pictures,
whoever sends them.

Most networks resize a picture to one height or to one shorter side, and the other side follows: a
picture of 1 × 300,000 pixels, 0.9 MB, would become one of 48 × 14,400,000.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from branchgrpo.errors import UserError
from branchgrpo.types import Sample

MAX_RATIO = 32.0
"""Longer side / shorter side, at most, of scorers that say nothing else."""

MAX_PIXELS = 1 << 25
"""Of one picture: 8192 × 4096. As float32 it has 400 MB."""

BATCH_PIXELS = 1 << 24
"""Of one batch of a network, before they are resized, unless a single picture has more: 64 of 512 ×
512."""

MAX_PROMPT = 8192
"""Characters of a prompt."""


def check(shape: Sequence[int], samples: Sequence[Sample], ratio: float = MAX_RATIO) -> None:
    """Raises UserError for pixels of this shape [L, F, H, W, 3], or records, that no scorer should
    be given."""
    height, width = shape[2:4]
    long, short = max(height, width), max(1, min(height, width))
    if long > ratio * short:
        raise UserError(
            f"reward: expected pictures whose longer side is at most {ratio:g} times the "
            f"shorter one, got {height} × {width}"
        )
    if height * width > MAX_PIXELS:
        raise UserError(
            f"reward: expected pictures of at most {MAX_PIXELS:,} pixels, got {height} × {width}"
        )
    if samples and (longest := max(len(sample.prompt) for sample in samples)) > MAX_PROMPT:
        raise UserError(
            f"reward: expected prompts of at most {MAX_PROMPT:,} characters, got {longest:,}"
        )


def batches(count: int, most: int, pixels: int) -> Iterator[slice]:
    """`count` rows in order, at most `most` at a time, fewer where each has so many pixels that it
    would be over BATCH_PIXELS."""
    size = max(1, min(most, BATCH_PIXELS // max(1, pixels)))
    for first in range(0, count, size):
        yield slice(first, first + size)
