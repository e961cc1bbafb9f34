"""The recogniser that the OCR reward reads lines with: PP-OCR's, as the package
rapidocr-onnxruntime ships it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from branchgrpo.errors import UserError
from branchgrpo.files.onnx_metadata import metadata
from branchgrpo.types import F32, U8

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
    return _alphabet(loaded.get_modelmeta().custom_metadata_map)


def _alphabet(named: Mapping[str, str]) -> tuple[str, ...]:
    return ("", *named["character"].splitlines(), " ")


@lru_cache(maxsize=1)
def known_characters() -> frozenset[str]:
    """What the recogniser has a code for."""
    return frozenset(_alphabet(metadata(recogniser()))) - {""}


def frames_of(width: int) -> int:
    """Frames that the recogniser gives of a line so many pixels wide: two convolutions halve it and
    keep an odd pixel, a pooling halves it and drops that."""
    return -(-width // 4) // 2


def resized(pictures: U8, height: int, width: int) -> F32:
    """Pictures u8 [B, H, W, 3] as f32 [B, height, width, 3], bilinear: pixels are squares whose
    values are those of their centres, and beyond the outermost centres nothing changes."""
    x: Any = pictures
    for axis, size in ((1, height), (2, width)):
        old = x.shape[axis]
        centres = np.arange(size, dtype=np.float32) + np.float32(0.5)
        place = np.maximum(centres * np.float32(old / size) - np.float32(0.5), 0)
        low = place.astype(np.int32)
        part = (place - low.astype(np.float32)).reshape(-1, *[1] * (3 - axis))
        high = np.minimum(low + 1, old - 1)
        x = x.take(low, axis) * (1 - part) + x.take(high, axis) * part
    found: F32 = x
    return found


def line_width(height: int, width: int) -> int:
    """Pixels that a picture's width becomes when its height is resized to HEIGHT."""
    return max(16, round(HEIGHT * width / height))


def frames_needed(text: str) -> int:
    """Frames that CTC spells a text in at the least: one a character, and a blank between equal
    neighbours."""
    return len(text) + sum(one == other for one, other in pairwise(text))
