"""Student's t distribution, whose quantiles every 95 % interval takes: few runs know their own
spread badly."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np


def within(t: float, freedom: int) -> float:
    """P(|T| < t) for a whole number of degrees of freedom (Abramowitz & Stegun 26.7.3 and
    26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    # The sum's terms: 1, 1/2·c², 1·3/(2·4)·c⁴, … for even degrees, c, 2/3·c³, 2·4/(3·5)·c⁵, … for
    # odd ones
    count = (freedom - odd) // 2
    places = 2.0 * np.arange(1, max(1, count)) + odd
    terms = np.cumprod(np.concatenate([[1.0], (places - 1) / places * math.cos(angle) ** 2]))
    factor = math.sin(angle) * (math.cos(angle) if odd else 1.0)
    total = float(terms.sum()) * factor if count else 0.0
    return 2.0 / math.pi * (angle + total) if odd else total


@lru_cache(maxsize=256)
def quantile(freedom: int, confidence: float = 0.95) -> float:
    """t with P(|T| < t) = confidence. Raises ValueError for fewer than one degree of freedom."""
    if freedom < 1 or not 0 < confidence < 1:
        raise ValueError(
            "student: expected at least 1 degree of freedom and 0 < confidence < 1, got "
            f"{freedom} and {confidence}"
        )
    low, high = 0.0, 1.0
    while within(high, freedom) < confidence:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, freedom) < confidence else (low, middle)
    return high
