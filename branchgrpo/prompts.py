"""Prompt lists: one prompt a line, dealt out in an order that a seed and a position determine."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from branchgrpo.errors import UserError
from branchgrpo.models.base import EMBEDDED


def read(key: str, source: str) -> list[str]:
    """Prompts of a text file, blank lines left out; embedded:NAME is a list shipped with the package.

    Raises UserError, naming the config key, for a file that is missing, unreadable, not UTF-8 or empty.
    """
    path = Path(source).expanduser()
    if source.startswith(EMBEDDED):
        path = Path(__file__).parent / "assets" / "prompts" / f"{source.removeprefix(EMBEDDED)}.txt"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}: expected a UTF-8 text file with one prompt a line, cannot read {path}: {error}") from error
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise UserError(f"{key}: expected one prompt a line, found none in {path}")
    return prompts


def deal(count: int, batch: int, iteration: int, seed: int) -> list[int]:
    """Indices of an iteration's prompts: epochs of a seeded shuffle, never one prompt twice in a batch."""
    if batch > count:
        raise UserError(f"rollout.prompts: expected at most {count}, the number of training prompts, got {batch}")
    per_epoch = count // batch  # what is left over of an epoch comes first in none, by chance of the shuffle
    epoch, place = divmod(iteration, per_epoch)
    order = np.random.default_rng((seed, epoch)).permutation(count)
    return [int(i) for i in order[place * batch : (place + 1) * batch]]
