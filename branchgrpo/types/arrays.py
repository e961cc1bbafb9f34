"""Arrays of messages, and a check of their shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
Bool = NDArray[np.bool_]
U8 = NDArray[np.uint8]


def check_shapes(owner: object, **shapes: tuple[NDArray[Any], tuple[int | None, ...]]) -> None:
    """Raise ValueError unless every array has its shape; None leaves a dimension free."""
    for name, (array, shape) in shapes.items():
        fits = array.ndim == len(shape) and all(
            want in (None, got) for want, got in zip(shape, array.shape, strict=True)
        )
        if not fits:
            raise ValueError(
                f"{type(owner).__name__}.{name}: expected shape {shape}, got {array.shape}"
            )
