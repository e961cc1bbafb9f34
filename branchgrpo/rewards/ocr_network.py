"""The recogniser that the OCR reward reads lines with: PP-OCR's, as the package
rapidocr-onnxruntime ships it."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from branchgrpo.errors import UserError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

HEIGHT = 48
"""Pixels that a line's height is resized to."""


def recogniser() -> Path:
    """The ONNX file of the recogniser."""
    spec = find_spec("rapidocr_onnxruntime")
    if spec is None or spec.origin is None:
        raise UserError(
            "rewards.ocr: expected the package rapidocr-onnxruntime, which is not installed"
        )
    found = sorted((Path(spec.origin).parent / "models").glob("*rec*.onnx"))
    if not found:
        raise UserError(
            "rewards.ocr: expected a recogniser (*rec*.onnx) in "
            f"{Path(spec.origin).parent / 'models'}"
        )
    return found[0]


def session(threads: int) -> InferenceSession:
    """The recogniser, loaded."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(
        str(recogniser()), settings, providers=["CPUExecutionProvider"]
    )


def alphabet_of(loaded: InferenceSession) -> tuple[str, ...]:
    """What each code stands for; 0 is CTC's blank."""
    return ("", *loaded.get_modelmeta().custom_metadata_map["character"].splitlines(), " ")


@lru_cache(maxsize=1)
def known_characters() -> frozenset[str]:
    """What the recogniser has a code for."""
    return frozenset(alphabet_of(session(1))) - {""}


@lru_cache(maxsize=8)
def frames_of(width: int) -> int:
    """Frames that the recogniser gives of a line so many pixels wide, found by running it once."""
    loaded = session(1)
    return int(
        loaded.run(
            None, {loaded.get_inputs()[0].name: np.zeros((1, 3, HEIGHT, width), np.float32)}
        )[0].shape[1]
    )


def line_width(height: int, width: int) -> int:
    """Pixels that a picture's width becomes when its height is resized to HEIGHT."""
    return max(16, round(HEIGHT * width / height))


def frames_needed(text: str) -> int:
    """Frames that CTC spells a text in at the least: one a character, and a blank between equal
    neighbours."""
    return len(text) + sum(one == other for one, other in pairwise(text))
