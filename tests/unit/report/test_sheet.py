"""Contact sheets of pictures and videos, by their pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from branchgrpo.report import contact_sheet as sheet
from branchgrpo.types import U8

pytestmark = pytest.mark.heavy


def test_small_pictures_are_enlarged_pixel_by_pixel(tmp_path: Path) -> None:
    pixels = np.zeros((32, 1, 32, 32, 3), np.uint8)
    pixels[:] = [[[[[i, 200, 7 * i]]]] for i in range(32)]
    sheet.pictures(
        tmp_path / "a.png",
        pixels=pixels,
        captions=[f"picture {i}" for i in range(32)],
        scores=np.linspace(0, 1, 32, dtype=np.float32),
        metric="ocr/exact",
        title="before",
    )
    whole = np.asarray(Image.open(tmp_path / "a.png"))
    assert whole.shape[1] == 8 * (128 + 18) + 18 and whole.shape[0] > 4 * 128
    for i in range(32):
        rows, columns = np.nonzero((whole == (i, 200, 7 * i)).all(axis=-1))
        assert len(rows) == 128 * 128  # whole, and no other picture over it
        assert int(np.ptp(rows)) == int(np.ptp(columns)) == 127
        # row by row
        assert (columns.min() // 146, rows.min() * 4 // whole.shape[0]) == (i % 8, i // 8)


@pytest.mark.parametrize(("side", "drawn"), [(256, 256), (1024, 384)])
def test_large_pictures(tmp_path: Path, side: int, drawn: int) -> None:
    pixels = np.full((5, 1, side, side, 3), 77, np.uint8)
    sheet.pictures(
        tmp_path / "a.png",
        pixels=pixels,
        captions=["a caption that goes on " * 20] * 5,
        scores=np.ones(5, np.float32),
        metric="ocr/exact",
        title="after " * 100,
    )
    whole = np.asarray(Image.open(tmp_path / "a.png"))
    assert whole.shape[1] == 4 * (drawn + 18) + 18
    assert (whole == 77).all(axis=-1).sum() >= 5 * drawn * drawn
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png"]  # pictures don't move


@pytest.mark.parametrize("frames", [1, 5])
def test_pictures_before_stand_left_of_what_was_made_of_them(tmp_path: Path, frames: int) -> None:
    """Whole, whatever their shape: a wide one, two, none."""
    pixels = np.full((3, frames, 128, 128, 3), (10, 200, 30), np.uint8)
    wide, tall = Image.new("RGB", (80, 40), "red"), Image.new("RGB", (30, 60), "blue")
    sheet.pictures(
        tmp_path / "a.png",
        pixels=pixels,
        captions=["x"] * 3,
        scores=np.ones(3, np.float32),
        metric="m/s",
        title="",
        sources=[[wide], [tall, wide], []],
    )
    whole = np.asarray(Image.open(tmp_path / "a.png"))

    def columns(colour: tuple[int, int, int]) -> list[tuple[int, int]]:
        there = (whole == colour).all(axis=-1)
        at = np.flatnonzero(there.any(axis=0))
        return [(run[0], run[-1]) for run in np.split(at, np.flatnonzero(np.diff(at) > 1) + 1)]

    assert (whole == (255, 0, 0)).all(axis=-1).sum() == 2 * 128 * 64
    assert (whole == (0, 0, 255)).all(axis=-1).sum() == 64 * 128
    drawn = (whole == (10, 200, 30)).all(axis=-1).sum()
    assert drawn == 3 * 128 * 128 * min(frames, sheet.STRIP)
    (left, right), after = columns((255, 0, 0))[0], columns((10, 200, 30))[0]
    assert right - left == 127 and after[0] == left + 2 * (128 + 2) - 2 + sheet.BETWEEN
    assert len({first for first, _ in columns((0, 0, 255))}) == 1
    assert (tmp_path / "a.webp").exists() == (frames > 1)


def test_pictures_need_a_caption_and_a_score_each(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2, 1, 2"):
        sheet.pictures(
            tmp_path / "a.png",
            pixels=np.zeros((2, 1, 8, 8, 3), np.uint8),
            captions=["one"],
            scores=np.zeros(2, np.float32),
            metric="ocr/exact",
            title="",
        )


def test_wrap_keeps_words_together_and_cuts_what_is_too_much() -> None:
    font = sheet.font(13)
    text = "a lighthouse at dusk with supercalifragilisticexpialidocious clouds"
    lines = sheet.wrap(text, font, 100, most=99)
    assert all(font.getlength(one) <= 100 for one in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert lines[0] == "a lighthouse at"
    cut = sheet.wrap(text, font, 100, most=2)
    assert len(cut) == 2 and cut[-1].endswith("…") and font.getlength(cut[-1]) <= 100


def clip(frames: int, videos: int = 3, height: int = 48, width: int = 32) -> U8:
    """Video i at time t is one colour: (18·i, 97·t mod 256, 90)."""
    pixels = np.zeros((videos, frames, height, width, 3), np.uint8)
    for video in range(videos):
        for time in range(frames):
            pixels[video, time] = (18 * video, 97 * time % 256, 90)
    return pixels


@pytest.mark.parametrize(
    ("frames", "shown"), [(2, [0, 1]), (5, [0, 1, 3, 4]), (17, [2, 6, 10, 14])]
)
def test_videos_are_film_strips(tmp_path: Path, frames: int, shown: list[int]) -> None:
    pixels = clip(frames)
    sheet.pictures(
        tmp_path / "a.png",
        pixels=pixels,
        captions=["a caption"] * 3,
        scores=np.zeros(3, np.float32),
        metric="video_align/overall",
        title="before",
    )
    whole = np.asarray(Image.open(tmp_path / "a.png"))
    left = {}
    for video in range(3):
        for time in range(frames):
            rows, columns = np.nonzero((whole == pixels[video, time, 0, 0]).all(axis=-1))
            # 48 × 32 enlarged threefold
            assert len(rows) == (144 * 96 if time in shown else 0), (video, time)
            if time in shown:
                left[video, time] = (int(rows.min()), int(columns.min()))
    for video in range(3):
        row, first = left[video, shown[0]]
        assert [left[video, time] for time in shown] == [
            (row, first + 98 * place) for place in range(len(shown))
        ]
    tops = [left[video, shown[0]][0] for video in range(3)]
    # two strips a row, four of short ones
    assert tops[0] == tops[1] and (tops[1] < tops[2]) == (frames > 2)


def test_videos_move_in_a_second_file(tmp_path: Path) -> None:
    pixels = clip(5, videos=14)
    sheet.pictures(
        tmp_path / "a.png",
        pixels=pixels,
        captions=["a caption"] * 14,
        scores=np.arange(14, dtype=np.float32),
        metric="ocr/exact",
        title="before",
        fps=5.0,
    )
    with Image.open(tmp_path / "a.webp") as film:
        assert (film.n_frames, film.info["loop"]) == (5, 0)
        times = []
        for time, picture in enumerate(ImageSequence.Iterator(film)):
            found = np.asarray(picture.convert("RGB")).astype(int)
            times.append(picture.info["duration"])
            for video in range(14):
                near = (
                    np.abs(found - pixels[video, time, 0, 0].astype(int)).max(axis=-1) <= 8
                ).sum()
                # the first twelve, lossily
                assert near > 0.8 * 144 * 96 if video < 12 else near < 0.1 * 144 * 96, (video, time)
    assert times == [200] * 5


def test_long_films_keep_their_length(tmp_path: Path) -> None:
    sheet.pictures(
        tmp_path / "a.png",
        pixels=clip(81, videos=1),
        captions=["a caption"],
        scores=np.zeros(1, np.float32),
        metric="ocr/exact",
        title="before",
        fps=16.0,
    )
    with Image.open(tmp_path / "a.webp") as film:
        milliseconds = 0
        for picture in ImageSequence.Iterator(film):
            picture.load()
            milliseconds += picture.info["duration"]
        assert film.n_frames == 41 and milliseconds == pytest.approx(1000 * 81 / 16, rel=0.02)


def test_large_films_are_reduced(tmp_path: Path) -> None:
    noise = (
        np.random.default_rng(0)
        .integers(0, 256, (12, 5, 120, 208, 3), np.uint8)
        .repeat(4, axis=2)
        .repeat(4, axis=3)
    )
    sheet.pictures(
        tmp_path / "a.png",
        pixels=noise,
        captions=["a caption"] * 12,
        scores=np.zeros(12, np.float32),
        metric="ocr/exact",
        title="before",
    )
    assert Image.open(tmp_path / "a.png").width == 2 * (4 * 194 - 2 + 18) + 18
    with Image.open(tmp_path / "a.webp") as film:
        assert film.width == 4 * (192 + 18) + 18
    assert (tmp_path / "a.webp").stat().st_size < 5 * 12 * 192 * 111  # less than a byte a pixel
