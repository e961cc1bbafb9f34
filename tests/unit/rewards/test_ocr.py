"""The OCR reward: the real recogniser on drawn numbers, and its arithmetic by hand."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from support.records import record, records

from branchgrpo.errors import UserError
from branchgrpo.rewards import ocr, ocr_targets
from branchgrpo.rewards.base import Resources
from branchgrpo.rewards.ocr import Ocr, OcrReward, Reader, edit_distance
from branchgrpo.types import Sample

pytestmark = pytest.mark.heavy

FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
TARGET = r"number (\d+)"
NUMBERS = ["38", "42", "57", "90", "16"]


def picture(text: str) -> np.ndarray:
    """Black text on white: [1, 32, 32, 3]."""
    image = Image.new("RGB", (32, 32), "white")
    ImageDraw.Draw(image).text(
        (16, 16), text, fill="black", font=ImageFont.truetype(str(FONT), 20), anchor="mm"
    )
    return np.asarray(image)[None]


@pytest.fixture(scope="module")
def numbers() -> Ocr:
    return OcrReward(target=TARGET).build(Resources())


def bare() -> Ocr:
    """No model: alphabet blank, a, b."""
    scorer = Ocr.__new__(Ocr)
    scorer.alphabet = ["", "a", "b"]
    scorer.index = {"": 0, "a": 1, "b": 2}
    return scorer


def test_drawn_numbers_are_read_exactly(numbers: Ocr) -> None:
    pixels = np.stack([picture(number) for number in NUMBERS])
    scores = numbers.score(
        pixels, records([f"the number {number} in black on white" for number in NUMBERS])
    )
    assert scores["exact"].tolist() == [1.0] * 5
    assert scores["edit"].tolist() == [1.0] * 5
    assert scores["likelihood"].min() > 0.5
    assert all(values.dtype == np.float32 for values in scores.values())


def test_a_wrong_number_scores_lower(numbers: Ocr) -> None:
    pixels = np.stack([picture("38")] * 4)
    scores = numbers.score(
        pixels, records([f"number {number}" for number in ("38", "39", "97", "3")])
    )
    assert scores["exact"].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert scores["edit"] == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert scores["likelihood"][0] > 10 * scores["likelihood"][1:].max()


def test_batches_do_not_change_scores() -> None:
    pixels = np.stack([picture(number) for number in NUMBERS])
    prompts = [f"number {number}" for number in NUMBERS]
    one, all_ = (
        OcrReward(target=TARGET, batch=size).build(Resources()).score(pixels, records(prompts))
        for size in (2, 64)
    )
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
    # two pictures of five frames
    probability = draw.dirichlet(np.ones(3), size=(2, 5)).astype(np.float32)
    wanted = []
    for frames in probability.astype(np.float64):
        paths = product(range(3), repeat=5)
        wanted.append(
            sum(
                np.prod([frame[code] for frame, code in zip(frames, path, strict=True)])
                for path in paths
                if collapse(path) == target
            )
        )
    assert bare().likelihood(probability, [target, target]) == pytest.approx(
        np.sqrt(wanted), rel=1e-4
    )


def test_likelihood_of_text_that_does_not_fit_is_zero() -> None:
    probability = np.full((1, 3, 3), 1 / 3, np.float32)
    assert bare().likelihood(probability, ["aa"])[0] > 0  # a, blank, a
    assert bare().likelihood(probability, ["aba", "aaa"][1:]) == [0.0]


def test_unknown_characters() -> None:
    with pytest.raises(UserError, match="knows no character 'z'"):
        bare().likelihood(np.full((1, 3, 3), 1 / 3, np.float32), ["z"])


def refused(prompt: str, size: int = 0, **options: Any) -> tuple[str, str] | None:
    found = OcrReward(**options).refusal(record(prompt), size, size)
    return (found.kind, found.detail) if found else None


def test_prompts_without_a_target() -> None:
    assert refused("number 3 in red", target=TARGET) is None
    assert refused("a red circle", target=TARGET) == (ocr_targets.NO_TEXT, "'a red circle'")
    with pytest.raises(UserError, match="a red circle") as caught:
        OcrReward(target=TARGET).target_of(record("a red circle"))
    assert "rewards.ocr.target" in str(caught.value) and "\n" not in str(caught.value)
    assert OcrReward(target=TARGET).target_of(record("the number 47 in red, not 11")) == "47"


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize(
    ("target", "prompt"),
    [
        (r"number (\d*)", "the number "),
        (r"number(?: (\d+))?", "the number "),
        ('"([^"]*)"', 'a "\u3000 " sign'),
    ],
)
def test_prompts_with_an_empty_target(target: str, prompt: str, fold: bool) -> None:
    options = {"target": target, "fold": fold, "train_on": "edit", "report": ("edit",)}
    assert refused(prompt, **options) == (ocr_targets.EMPTY, repr(prompt))
    with pytest.raises(UserError, match="an empty text"):
        OcrReward(**options).target_of(record(prompt))


def test_the_target_of_a_records_metadata() -> None:
    """A user's file names the text in a column; the prompt need not quote it."""
    sample = Sample(prompt='a shop called "Noon"', metadata={"text": "38", "year": 57, "none": " "})
    options = OcrReward(target_key="text")
    assert options.target_of(sample) == "38" and options.refusal(sample, 0, 0) is None
    assert OcrReward(target_key="year").target_of(sample) == "57"
    for pixels, exact in ((picture("38"), 1.0), (picture("57"), 0.0)):
        scores = options.build(Resources()).score(pixels[None], [sample])
        assert scores["exact"].tolist() == [exact]
    for key, kind in (("gone", ocr_targets.NO_METADATA), ("none", ocr_targets.EMPTY)):
        found = OcrReward(target_key=key).refusal(sample, 0, 0)
        assert found and found.kind == kind
        with pytest.raises(UserError, match=r"rewards\.ocr\.target_key: expected .*Noon"):
            OcrReward(target_key=key).target_of(sample)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ('a sign that says "HELLO"', "HELLO"),
        ("a sign that says “HELLO”", "HELLO"),
        ("ein Schild „HALLO“ am Tor", "HALLO"),
        ("une affiche « OUI » et « NON »", " OUI "),
        ("a sign ‘Don’t walk’ at night", "Don’t walk"),
        ("the dog’s sign “NO”", "NO"),
        ('a page “He said "hi" to me”', 'He said "hi" to me'),
        ('a page "He said “hi” to me"', "He said “hi” to me"),
        ("""a page "it's 'fine'" here""", "it's 'fine'"),
        ('signs "A" and "B"', "A"),
    ],
)
def test_quotes_that_the_default_target_understands(prompt: str, text: str) -> None:
    assert OcrReward().target_of(record(prompt)) == text
    assert refused(prompt, train_on="edit", report=("edit",)) is None


@pytest.mark.parametrize(
    ("prompt", "target", "kind"),
    [
        ('a page "He said "hi" to me"', ocr_targets.QUOTED, ocr_targets.NESTED),
        ('a 5" pipe with "OIL" on it', ocr_targets.QUOTED, ocr_targets.NESTED),
        ("a page “He said “hi” to me”", ocr_targets.QUOTED, ocr_targets.NESTED),
        ("a sign 'HELLO' on a dog's house", ocr_targets.QUOTED, ocr_targets.OTHER_QUOTES),
        ("a sign “HELLO”", '"([^"]+)"', ocr_targets.OTHER_QUOTES),
        ("the dogs' and the cats' house", ocr_targets.QUOTED, ocr_targets.NO_TEXT),
        ("it's the dog's house", ocr_targets.QUOTED, ocr_targets.NO_TEXT),
    ],
)
def test_quotes_that_leave_the_text_open_are_refused(prompt: str, target: str, kind: str) -> None:
    assert refused(prompt, target=target) == (kind, repr(prompt))


def test_characters_are_asked_for_only_where_likelihood_is() -> None:
    prompt = 'a menu with "naïve" on it'
    for options in (
        {},
        {"train_on": "edit"},
        {"report": ("edit", "likelihood"), "train_on": "edit"},
    ):
        kind, detail = refused(prompt, **options) or ("", "")
        assert kind == ocr_targets.UNKNOWN and detail == "'ï' in 'naïve'"
    assert refused(prompt, train_on="edit", report=("edit", "exact")) is None


def test_scores_that_nobody_asked_for_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.stack([picture("38")])
    scorer = OcrReward(train_on="edit", report=("edit",)).build(Resources())
    # no likelihood, which it has not
    assert scorer.score(pixels, records(['a menu with "naïve" on it'])).keys() == {"edit"}
    monkeypatch.setattr(ocr, "edit_distance", None)
    scorer = OcrReward(train_on="likelihood", report=("exact",), target=TARGET).build(Resources())
    assert scorer.score(pixels, records(["number 38"])).keys() == {"likelihood", "exact"}
    monkeypatch.setattr(Ocr, "decode", None)
    scorer = OcrReward(train_on="likelihood", report=("likelihood",), target=TARGET).build(
        Resources()
    )
    assert scorer.score(pixels, records(["number 38"])).keys() == {"likelihood"}


@pytest.mark.parametrize(("size", "width"), [((32, 32), 0), ((32, 96), 0), ((32, 32), 96)])
def test_text_is_too_long_where_its_likelihood_is_0_and_only_there(
    size: tuple[int, int], width: int
) -> None:
    options = OcrReward(target="(.+)", width=width)
    scorer = options.build(Resources())
    frames = scorer._read(np.full((1, *size, 3), 255, np.uint8))
    # whatever the picture shows: any text that fits is possible
    even = np.full_like(frames, 1 / frames.shape[2])
    seen = set()
    for text in (
        "38",
        "388",
        "111",
        "1111",
        "123456",
        "1234567",
        "112233",
        "1" * 9,
        "1" * 10,
        "123456789012345678",
        "1234567890123456789",
    ):
        possible = scorer.likelihood(even, [text])[0] > 0
        found = options.refusal(record(text), *size)
        assert (found is None) == possible, text
        assert found is None or found.kind == ocr_targets.TOO_LONG
        seen.add(possible)
    assert seen == {True, False}


@pytest.mark.parametrize("target", ["number", "(", "[a"])
def test_bad_patterns(target: str) -> None:
    with pytest.raises(ValueError, match="expected a regular expression"):
        OcrReward(target=target)


def page(lines: list[str], size: tuple[int, int] = (384, 288)) -> np.ndarray:
    """Lines of black text somewhere on a light page: [1, H, W, 3]."""
    image = Image.new("RGB", size, (240, 235, 220))
    for row, line in enumerate(lines):
        ImageDraw.Draw(image).text(
            (30 + 20 * row, 60 + 90 * row),
            line,
            fill="black",
            font=ImageFont.truetype(str(FONT), 26),
        )
    return np.asarray(image)[None]


@pytest.fixture(scope="module")
def reader() -> Reader:
    found: Reader = OcrReward(
        read="page", train_on="edit", report=("exact", "edit"), fold=True, frames=2
    ).build(Resources())
    return found


def test_text_of_any_length_is_found_on_a_page(reader: Reader) -> None:
    pixels = np.stack(
        [
            page(["Branches share", "their prefix"]),
            page(["Branches share", "their prefix"]),
            page([]),
        ]
    )
    wanted = ["branches share their prefix", "Branches share their suffix", "anything"]
    scores = reader.score(pixels, records([f'a page that says "{text}"' for text in wanted]))
    assert scores.keys() == {"exact", "edit"} and reader.trains_on == "edit"
    assert scores["exact"].tolist() == [1.0, 0.0, 0.0]
    # three letters of 24 differ
    assert scores["edit"] == pytest.approx([1.0, 1 - 3 / 24, 0.0], abs=1e-6)


def test_a_video_is_the_mean_of_its_frames(reader: Reader) -> None:
    frames = [
        page(["four words are here"]),
        page([]),
        page([]),
        page(["four words are here"]),
        page([]),
    ]
    # frames 1 and 3 of 0 … 4
    assert reader.score(np.concatenate(frames)[None], records(['"four words are here"']))[
        "exact"
    ].tolist() == [0.5]


def test_a_long_line_needs_a_wide_picture() -> None:
    image = Image.new("RGB", (400, 48), "white")
    ImageDraw.Draw(image).text(
        (8, 8), "reinforcement learning", fill="black", font=ImageFont.truetype(str(FONT), 28)
    )
    scores = (
        OcrReward(fold=True)
        .build(Resources())
        .score(np.asarray(image)[None, None], records(['"reinforcement learning"']))
    )
    assert scores["exact"].tolist() == [1.0] and scores["likelihood"][0] > 0.5


def test_a_page_has_no_likelihood() -> None:
    with pytest.raises(ValueError, match="without likelihood"):
        OcrReward(read="page")
