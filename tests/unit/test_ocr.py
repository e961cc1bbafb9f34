"""The OCR reward: the real recogniser on drawn numbers, and its arithmetic by hand."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from branchgrpo.errors import UserError
from branchgrpo.rewards.ocr import Ocr, OcrReward, Reader, edit_distance

FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
TARGET = r"number (\d+)"
NUMBERS = ["38", "42", "57", "90", "16"]


def picture(text: str) -> np.ndarray:
    """Black text on white: [1, 32, 32, 3]."""
    image = Image.new("RGB", (32, 32), "white")
    ImageDraw.Draw(image).text((16, 16), text, fill="black", font=ImageFont.truetype(str(FONT), 20), anchor="mm")
    return np.asarray(image)[None]


@pytest.fixture(scope="module")
def ocr() -> Ocr:
    return OcrReward(target=TARGET).build(1, "cpu")


def bare() -> Ocr:
    """No model: alphabet blank, a, b."""
    scorer = Ocr.__new__(Ocr)
    scorer.alphabet = ["", "a", "b"]
    scorer.index = {"": 0, "a": 1, "b": 2}
    return scorer


def test_drawn_numbers_are_read_exactly(ocr: Ocr) -> None:
    pixels = np.stack([picture(number) for number in NUMBERS])
    scores = ocr.score(pixels, [f"the number {number} in black on white" for number in NUMBERS])
    assert scores["exact"].tolist() == [1.0] * 5
    assert scores["edit"].tolist() == [1.0] * 5
    assert scores["likelihood"].min() > 0.5
    assert all(values.dtype == np.float32 for values in scores.values())


def test_a_wrong_number_scores_lower(ocr: Ocr) -> None:
    pixels = np.stack([picture("38")] * 4)
    scores = ocr.score(pixels, [f"number {number}" for number in ("38", "39", "97", "3")])
    assert scores["exact"].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert scores["edit"] == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert scores["likelihood"][0] > 10 * scores["likelihood"][1:].max()


def test_batches_do_not_change_scores() -> None:
    pixels = np.stack([picture(number) for number in NUMBERS])
    prompts = [f"number {number}" for number in NUMBERS]
    one, all_ = (OcrReward(target=TARGET, batch=size).build(1, "cpu").score(pixels, prompts) for size in (2, 64))
    for name in all_:
        assert one[name] == pytest.approx(all_[name], abs=1e-5)


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("abc", "", 3),
        ("38", "38", 0),
        ("38", "39", 1),
        ("38", "83", 2),
        ("kitten", "sitting", 3),
        ("ab", "b", 1),
        ("flaw", "lawn", 2),
    ],
)
def test_edit_distance(a: str, b: str, distance: int) -> None:
    assert edit_distance(a, b) == distance


def test_greedy_decoding_merges_repeats_and_drops_blanks() -> None:
    frames = np.eye(3, dtype=np.float32)[[1, 1, 0, 1, 2, 2, 0]]
    assert bare().decode(frames[None]) == ["aab"]
    assert bare().decode(np.eye(3, dtype=np.float32)[[0, 0]][None]) == [""]


def collapse(path: tuple[int, ...]) -> str:
    """What a CTC path spells."""
    merged = [code for i, code in enumerate(path) if i == 0 or code != path[i - 1]]
    return "".join("_ab"[code] for code in merged if code)


@pytest.mark.parametrize("target", ["a", "b", "ab", "ba", "aa", "aab", "bab"])
def test_likelihood_against_all_paths(target: str) -> None:
    draw = np.random.default_rng(2)
    probability = draw.dirichlet(np.ones(3), size=(2, 5)).astype(np.float32)  # two pictures of five frames
    wanted = []
    for frames in probability.astype(np.float64):
        paths = product(range(3), repeat=5)
        wanted.append(sum(np.prod([frame[code] for frame, code in zip(frames, path, strict=True)]) for path in paths if collapse(path) == target))
    assert bare().likelihood(probability, [target, target]) == pytest.approx(np.sqrt(wanted), rel=1e-4)


def test_likelihood_of_text_that_does_not_fit_is_zero() -> None:
    probability = np.full((1, 3, 3), 1 / 3, np.float32)
    assert bare().likelihood(probability, ["aa"])[0] > 0  # a, blank, a
    assert bare().likelihood(probability, ["aba", "aaa"][1:]) == [0.0]


def test_unknown_characters() -> None:
    with pytest.raises(UserError, match="knows no character 'z'"):
        bare().likelihood(np.full((1, 3, 3), 1 / 3, np.float32), ["z"])


def test_prompts_without_a_target() -> None:
    reward = OcrReward(target=TARGET)
    reward.check_prompts(["the number 12", "number 3 in red"])
    with pytest.raises(UserError, match="a red circle") as caught:
        reward.check_prompts(["the number 12", "a red circle"])
    assert "rewards.ocr.target" in str(caught.value) and "\n" not in str(caught.value)
    assert reward.target_of("the number 47 in red, not 11") == "47"


@pytest.mark.parametrize("target", [r"number (\d*)", r"number(?: (\d+))?"])
def test_prompts_with_an_empty_target(target: str) -> None:
    with pytest.raises(UserError):
        OcrReward(target=target).check_prompts(["the number "])


@pytest.mark.parametrize("target", ["number", "(", "[a"])
def test_bad_patterns(target: str) -> None:
    with pytest.raises(ValueError, match="expected a regular expression"):
        OcrReward(target=target)


def page(lines: list[str], size: tuple[int, int] = (384, 288)) -> np.ndarray:
    """Lines of black text somewhere on a light page: [1, H, W, 3]."""
    image = Image.new("RGB", size, (240, 235, 220))
    for row, line in enumerate(lines):
        ImageDraw.Draw(image).text((30 + 20 * row, 60 + 90 * row), line, fill="black", font=ImageFont.truetype(str(FONT), 26))
    return np.asarray(image)[None]


@pytest.fixture(scope="module")
def reader() -> Reader:
    found: Reader = OcrReward(read="page", train_on="edit", report=("exact", "edit"), fold=True, frames=2).build(1, "cpu")
    return found


def test_text_of_any_length_is_found_on_a_page(reader: Reader) -> None:
    pixels = np.stack([page(["Branches share", "their prefix"]), page(["Branches share", "their prefix"]), page([])])
    wanted = ["branches share their prefix", "Branches share their suffix", "anything"]
    scores = reader.score(pixels, [f'a page that says "{text}"' for text in wanted])
    assert scores.keys() == {"exact", "edit"} and reader.trains_on == "edit"
    assert scores["exact"].tolist() == [1.0, 0.0, 0.0]
    assert scores["edit"] == pytest.approx([1.0, 1 - 3 / 24, 0.0], abs=1e-6)  # three letters of 24 differ


def test_a_video_is_the_mean_of_its_frames(reader: Reader) -> None:
    frames = [page(["four words are here"]), page([]), page([]), page(["four words are here"]), page([])]
    assert reader.score(np.concatenate(frames)[None], ['"four words are here"'])["exact"].tolist() == [0.5]  # frames 1 and 3 of 0 … 4


def test_a_long_line_needs_a_wide_picture() -> None:
    image = Image.new("RGB", (400, 48), "white")
    ImageDraw.Draw(image).text((8, 8), "reinforcement learning", fill="black", font=ImageFont.truetype(str(FONT), 28))
    scores = OcrReward(fold=True).build(1, "cpu").score(np.asarray(image)[None, None], ['"reinforcement learning"'])
    assert scores["exact"].tolist() == [1.0] and scores["likelihood"][0] > 0.5


def test_a_page_has_no_likelihood() -> None:
    with pytest.raises(ValueError, match="without likelihood"):
        OcrReward(read="page")
