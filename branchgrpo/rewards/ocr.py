"""OCR reward: does the picture show the text that the prompt asks for?

The networks are PP-OCR's, as the package rapidocr-onnxruntime ships them. A picture that is one
line of text goes to the recogniser alone, whose ONNX file is used without importing the package (it
would load OpenCV). On a page, the package's own detector finds the lines first.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from branchgrpo.errors import UserError
from branchgrpo.rewards import ctc
from branchgrpo.rewards import ocr_network as network
from branchgrpo.rewards.base import Footprint, Refusal, Resources, RewardOptions, Scorer, evenly
from branchgrpo.rewards.http import limits
from branchgrpo.rewards.ocr_targets import QUOTED, unlikely, wanted
from branchgrpo.types import F32, U8, Sample

if TYPE_CHECKING:
    from numpy.typing import NDArray

Score = Literal["exact", "edit", "likelihood"]


COLUMNS = 64 * 192
"""Pixels of width, all pictures together, that the recogniser reads at once; each takes 42 kB of
memory."""


class OcrReward(RewardOptions):
    """Scores: exact (the text read equals the target), edit (1 − edit distance / length, at least
    0) and, of a line, likelihood (exp(−½ · CTC negative log-likelihood of the target), dense)."""

    name: Literal["ocr"] = Field("ocr", description="the reward")
    train_on: Score = Field("likelihood", description="the score that trains")
    report: tuple[Score, ...] = Field(
        ("exact", "edit", "likelihood"), min_length=1, description="the scores that are reported"
    )
    target: str = Field(
        QUOTED,
        description="regular expression whose first group that matches is the wanted text in the "
        'prompt; the default finds "…", “…”, „…“, «…», ‘…’',
    )
    target_key: str = Field(
        "",
        description="key of the record's metadata whose text is wanted, whatever the prompt says; "
        "empty = what target finds",
    )
    read: Literal["line", "page"] = Field(
        "line",
        description="the whole picture is one line of text, or text of any length is found "
        "anywhere in it",
    )
    fold: bool = Field(
        False, description="compare without spaces and in lower case, as Flow-GRPO does"
    )
    width: int = Field(
        0,
        ge=0,
        description="width that a line is resized to, its height is 48; 0 = as wide as the "
        "picture's shape asks",
    )
    frames: int = Field(
        1,
        ge=1,
        description="frames of a video that are read, evenly spaced; scores are their means",
    )
    batch: int = Field(64, ge=1, description="pictures per forward of the recogniser")

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if self.read == "page" and "likelihood" in (self.train_on, *self.report):
            raise ValueError(
                "expected train_on and report without likelihood, which only read: line "
                "has; with read: page take train_on: edit"
            )
        return self

    @field_validator("target")
    @classmethod
    def _one_group(cls, value: str) -> str:
        try:
            groups = re.compile(value).groups
        except re.error as error:
            raise ValueError(f"expected a regular expression, got {value!r}: {error}") from error
        if groups < 1:
            raise ValueError(f"expected a regular expression with a group, got {value!r}")
        return value

    def target_of(self, sample: Sample) -> str:
        """The text a record asks for. Raises UserError when it names none."""
        text, refused = wanted(sample, self.target, self.target_key)
        if refused:
            looked = self.target_key or repr(self.target)
            raise UserError(
                f"rewards.ocr.{'target_key' if self.target_key else 'target'}: expected {looked} "
                f"to find text in every record, got {refused.kind} in {refused.detail}"
            )
        return text

    @property
    def wanted(self) -> frozenset[Score]:
        """Scores that train or are reported; no others are computed."""
        return frozenset((self.train_on, *self.report))

    def reported(self) -> tuple[str, ...]:
        return self.report

    def refusal(self, sample: Sample, height: int, width: int) -> Refusal | None:
        text, refused = wanted(sample, self.target, self.target_key)
        if refused or "likelihood" not in self.wanted:
            return refused
        return unlikely(text, self.width or (network.line_width(height, width) if height else 0))

    def footprint(self, frames: int) -> Footprint:
        # in main memory, whatever the device
        del frames
        return Footprint(weights=11e6 if self.read == "line" else 16e6, activations=42e3 * COLUMNS)

    def build(self, resources: Resources) -> Reader:
        """The recogniser runs on the CPU whatever the device: 5 ms a picture."""
        return (
            OcrPage(self, resources.threads)
            if self.read == "page"
            else Ocr(self, resources.threads)
        )


class Reader(Scorer):
    """What reading a line and a page have in common."""

    def __init__(self, options: OcrReward):
        self.options = options
        self.trains_on = options.train_on
        self.reports = options.report

    def score(self, pixels: U8, samples: list[Sample]) -> dict[str, F32]:
        chosen = evenly(pixels.shape[1], self.options.frames)
        flat = pixels[:, chosen].reshape(-1, *pixels.shape[2:])
        found = self.pictures(
            flat, [self.options.target_of(sample) for sample in samples for _ in chosen]
        )
        return {
            name: np.array(values, np.float32).reshape(-1, len(chosen)).mean(1)
            for name, values in found.items()
        }

    @abstractmethod
    def pictures(self, pictures: U8, targets: list[str]) -> dict[str, list[float]]:
        """Scores of pictures u8 [B, H, W, 3]."""

    def compare(self, texts: Iterable[str], targets: Iterable[str]) -> dict[str, list[float]]:
        """exact and edit of texts that were read, those of them that are wanted."""
        pairs = [tuple(map(self._folded, pair)) for pair in zip(texts, targets, strict=True)]
        scores: dict[str, list[float]] = {}
        if "exact" in self.options.wanted:
            scores["exact"] = [float(text == target) for text, target in pairs]
        if "edit" in self.options.wanted:
            scores["edit"] = [
                1.0 - min(1.0, edit_distance(text, target) / len(target)) for text, target in pairs
            ]
        return scores

    def _folded(self, text: str) -> str:
        return "".join(text.split()).lower() if self.options.fold else text


class OcrPage(Reader):
    """Detector, then recogniser. Lines are joined by spaces, from top to bottom."""

    # a line that is found in a long picture is read at 48 pixels' height: 512 × 17 took 2.2 GB
    max_ratio = 8.0

    def __init__(self, options: OcrReward, threads: int):
        from rapidocr_onnxruntime import RapidOCR

        super().__init__(options)
        self.engine = RapidOCR(intra_op_num_threads=threads)

    def pictures(self, pictures: U8, targets: list[str]) -> dict[str, list[float]]:
        return self.compare(map(self.read, pictures), targets)

    def read(self, picture: U8) -> str:
        """All text of a picture u8 [H, W, 3]."""
        lines, _ = self.engine(np.ascontiguousarray(picture[..., ::-1]))  # BGR
        return " ".join(str(line[1]) for line in lines or [])


class Ocr(Reader):
    """The recogniser alone."""

    def __init__(self, options: OcrReward, threads: int):
        super().__init__(options)
        self.session = network.session(threads)
        self.alphabet = network.alphabet_of(self.session)
        self.index = {character: code for code, character in enumerate(self.alphabet)}

    def pictures(self, pictures: U8, targets: list[str]) -> dict[str, list[float]]:
        scores: dict[str, list[float]] = {name: [] for name in self.options.wanted}
        height, width = pictures.shape[1:3]
        most = max(
            1,
            min(
                self.options.batch,
                COLUMNS // (self.options.width or network.line_width(height, width)),
            ),
        )
        for rows in limits.batches(len(targets), most, height * width):
            probability = self._read(pictures[rows])
            if "likelihood" in scores:
                scores["likelihood"] += self.likelihood(probability, targets[rows])
            if scores.keys() & {"exact", "edit"}:
                for name, values in self.compare(self.decode(probability), targets[rows]).items():
                    scores[name] += values
        return scores

    def _read(self, pictures: U8) -> F32:
        """Character probabilities [B, time, alphabet] of pictures u8 [B, H, W, 3]."""
        width = self.options.width or network.line_width(*pictures.shape[1:3])
        x = network.resized(pictures, network.HEIGHT, width) / np.float32(127.5) - np.float32(1)
        bgr = np.ascontiguousarray(x[..., ::-1].transpose(0, 3, 1, 2))
        out: F32 = self.session.run(None, {self.session.get_inputs()[0].name: bgr})[0]
        return out

    def decode(self, probability: F32) -> list[str]:
        """Greedy CTC: repeats merge, blanks vanish."""
        texts = []
        for best in probability.argmax(-1):
            changed = np.r_[True, best[1:] != best[:-1]]
            texts.append("".join(self.alphabet[i] for i in best[changed & (best != 0)]))
        return texts

    def likelihood(self, probability: F32, targets: list[str]) -> list[float]:
        """exp(−½ · CTC negative log-likelihood) of each target; 0 for text that the frames cannot
        hold."""
        codes = [[self._code(character) for character in target] for target in targets]
        values: list[float] = np.exp(0.5 * ctc.log_likelihood(probability, codes)).tolist()
        return values

    def _code(self, character: str) -> int:
        if character not in self.index:
            raise UserError(f"rewards.ocr: the recogniser knows no character {character!r}")
        return self.index[character]


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance."""
    row: NDArray[np.int64] = np.arange(len(b) + 1)
    for i, left in enumerate(a, 1):
        previous, row = row, np.empty_like(row)
        row[0] = i
        for j, right in enumerate(b, 1):
            row[j] = min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (left != right))
    return int(row[-1])
