"""Draw docs/images/pairs.png: a run's first held-out prompts, each before and after training.

python -m tools.site.pairs RUN_FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw

from branchgrpo.report.contact_sheet import font, kept, strip, wrap

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "images" / "pairs.png"
SIDE, GAP, COLUMNS, WORDS = 208, 16, 2, 30
"""Pixels of a picture, between pairs, pairs in a row, pixels below them for their caption."""


def main(folder: Path) -> None:
    """Pairs side by side, in the order of the held-out list."""
    before, captions, _ = kept(folder / "samples" / "before.npz")
    after, again, _ = kept(folder / "samples" / "after.npz")
    if captions != again:
        raise ValueError(f"{folder}: expected the same prompts before and after")
    wide, high = 2 * SIDE + 4 + GAP, SIDE + WORDS + GAP
    rows = -(-len(captions) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * wide + GAP, rows * high + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for index, caption in enumerate(captions):
        x, y = GAP + index % COLUMNS * wide, GAP + index // COLUMNS * high
        for place, pixels in enumerate((before[index], after[index])):
            corner = (x + place * (SIDE + 4), y)
            sheet.paste(strip(pixels[:1], (SIDE, SIDE)), corner)
        (line, *_) = wrap(caption, font(14), wide - GAP, most=1)
        draw.text((x, y + SIDE + 6), line, fill="black", font=font(14))
    sheet.save(PICTURE)
    print(f"wrote {PICTURE}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
