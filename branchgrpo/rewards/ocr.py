"""OCR reward: does the picture show the text that the prompt asks for?

The recogniser is PP-OCR's, as the package rapidocr-onnxruntime ships it; only its ONNX file is used, since
importing the package would load OpenCV.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, field_validator

from branchgrpo.errors import UserError
from branchgrpo.rewards.base import RewardOptions, Scorer
from branchgrpo.types import F32, U8

if TYPE_CHECKING:
    from numpy.typing import NDArray

Score = Literal["exact", "edit", "likelihood"]


class OcrReward(RewardOptions):
    """Scores: exact (the text read equals the target), edit (1 − edit distance / length, at least 0) and
    likelihood (exp(−½ · CTC negative log-likelihood of the target), dense)."""

    name: Literal["ocr"] = Field("ocr", description="the reward")
    train_on: Score = Field("likelihood", description="the score that trains")
    report: tuple[Score, ...] = Field(("exact", "edit", "likelihood"), min_length=1, description="the scores that are reported")
    target: str = Field('"([^"]+)"', description="regular expression whose first group is the wanted text in the prompt")
    width: int = Field(48, ge=16, description="width that pictures are resized to; the height is 48")
    batch: int = Field(64, ge=1, description="pictures per forward of the recogniser")

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

    def target_of(self, prompt: str) -> str:
        """The text a prompt asks for. Raises UserError when it names none."""
        found = re.search(self.target, prompt)
        if not found or not found.group(1):
            raise UserError(f"rewards.ocr.target: expected {self.target!r} to find text in every prompt, found none in {prompt!r}")
        return found.group(1)

    def reported(self) -> tuple[str, ...]:
        return self.report

    def check_prompts(self, prompts: Iterable[str]) -> None:
        for prompt in prompts:
            self.target_of(prompt)

    def build(self, threads: int, device: str) -> Ocr:
        """The recogniser runs on the CPU whatever the device: 5 ms a picture."""
        del device
        return Ocr(self, threads)


def recogniser() -> Path:
    """The ONNX file of the recogniser."""
    spec = find_spec("rapidocr_onnxruntime")
    if spec is None or spec.origin is None:
        raise UserError("rewards.ocr: expected the package rapidocr-onnxruntime, which is not installed")
    found = sorted((Path(spec.origin).parent / "models").glob("*rec*.onnx"))
    if not found:
        raise UserError(f"rewards.ocr: expected a recogniser (*rec*.onnx) in {Path(spec.origin).parent / 'models'}")
    return found[0]


class Ocr(Scorer):
    """The loaded recogniser."""

    def __init__(self, options: OcrReward, threads: int):
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
        self.session = onnxruntime.InferenceSession(str(recogniser()), settings, providers=["CPUExecutionProvider"])
        characters = self.session.get_modelmeta().custom_metadata_map["character"].splitlines()
        self.alphabet = ["", *characters, " "]  # index 0 is CTC's blank
        self.index = {character: i for i, character in enumerate(self.alphabet)}
        self.options, self.trains_on, self.reports = options, options.train_on, options.report

    def score(self, pixels: U8, prompts: list[str]) -> dict[str, F32]:
        targets = [self.options.target_of(prompt) for prompt in prompts]
        scores: dict[str, list[float]] = {"exact": [], "edit": [], "likelihood": []}
        for first in range(0, len(targets), self.options.batch):
            rows = slice(first, first + self.options.batch)
            probability = self._read(pixels[rows, 0])
            scores["likelihood"] += self.likelihood(probability, targets[rows])
            for text, target in zip(self.decode(probability), targets[rows], strict=True):
                scores["exact"].append(float(text == target))
                scores["edit"].append(1.0 - min(1.0, edit_distance(text, target) / len(target)))
        return {name: np.array(values, np.float32) for name, values in scores.items()}

    def _read(self, pictures: U8) -> F32:
        """Character probabilities [B, time, alphabet] of pictures u8 [B, H, W, 3]."""
        import torch

        x = torch.from_numpy(pictures.astype(np.float32)).permute(0, 3, 1, 2)
        x = torch.nn.functional.interpolate(x, size=(48, self.options.width), mode="bilinear", align_corners=False) / 127.5 - 1.0
        out: F32 = self.session.run(None, {self.session.get_inputs()[0].name: x.flip(1).numpy()})[0]  # BGR
        return out

    def decode(self, probability: F32) -> list[str]:
        """Greedy CTC: repeats merge, blanks vanish."""
        texts = []
        for best in probability.argmax(-1):
            changed = np.r_[True, best[1:] != best[:-1]]
            texts.append("".join(self.alphabet[i] for i in best[changed & (best != 0)]))
        return texts

    def likelihood(self, probability: F32, targets: list[str]) -> list[float]:
        """exp(−½ · CTC negative log-likelihood) of each target; 0 for text that the frames cannot hold."""
        import torch

        log_p = torch.from_numpy(probability).clamp_min(1e-8).log().transpose(0, 1)  # [time, B, alphabet]
        codes = [[self._code(character) for character in target] for target in targets]
        lengths = torch.tensor([len(code) for code in codes])
        flat = torch.tensor([i for code in codes for i in code])
        frames = torch.full((len(targets),), log_p.shape[0])
        nll = torch.nn.functional.ctc_loss(log_p, flat, frames, lengths, reduction="none")
        values: list[float] = torch.exp(-0.5 * nll).tolist()
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
