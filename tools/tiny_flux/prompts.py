"""The prompt lists of the quick start: numbers to train on and numbers held out for evaluation.

``python -m tools.tiny_flux.prompts FOLDER`` writes ``train.txt`` and ``heldout.txt``.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from tools.tiny_flux.render import colour_pairs, number_caption

HELD_OUT_CAPTIONS = 256
SHUFFLE_SEED = 0


def held_out_numbers() -> list[str]:
    """Return 16 numbers that have every digit once or twice in each of the two places."""
    once = [(tens, (3 * tens + 1) % 10) for tens in range(10)]
    again = [(tens, (7 * tens + 4) % 10) for tens in (0, 2, 3, 5, 6, 8)]
    return sorted(f"{tens}{units}" for tens, units in once + again)


def training_numbers() -> list[str]:
    """Return the 84 two-digit numbers that are not held out."""
    held_out = set(held_out_numbers())
    return [number for number in (f"{value:02d}" for value in range(100)) if number not in held_out]


def held_out_captions() -> list[str]:
    """Return captions of the held-out numbers, as many of each, with the colour pairs dealt out in
    turn."""
    numbers, pairs = held_out_numbers(), colour_pairs()
    each = HELD_OUT_CAPTIONS // len(numbers)
    captions = [
        number_caption(numbers[index // each], *pairs[index % len(pairs)])
        for index in range(HELD_OUT_CAPTIONS)
    ]
    random.Random(SHUFFLE_SEED).shuffle(captions)
    return captions


def training_captions() -> list[str]:
    """Return every caption of every training number, shuffled."""
    captions = [
        number_caption(number, *pair) for number in training_numbers() for pair in colour_pairs()
    ]
    random.Random(SHUFFLE_SEED).shuffle(captions)
    return captions


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the two lists."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.tiny_flux.prompts", description="Write the prompt lists."
    )
    parser.add_argument("folder", type=Path, help="folder to write train.txt and heldout.txt to")
    folder: Path = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, captions in (("train", training_captions()), ("heldout", held_out_captions())):
        (folder / f"{name}.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
