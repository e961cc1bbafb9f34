"""Student's t against printed tables and closed forms."""

from __future__ import annotations

import math

import pytest

from branchgrpo.report.student import quantile, within

# Two-sided 95 % and 99 % points as statistics books print them.
REGISTRY = {
    1: (12.706, 63.657),
    2: (4.303, 9.925),
    3: (3.182, 5.841),
    4: (2.776, 4.604),
    5: (2.571, 4.032),
    6: (2.447, 3.707),
    7: (2.365, 3.499),
    8: (2.306, 3.355),
    9: (2.262, 3.250),
    10: (2.228, 3.169),
    15: (2.131, 2.947),
    20: (2.086, 2.845),
    30: (2.042, 2.750),
    60: (2.000, 2.660),
    120: (1.980, 2.617),
    1000: (1.962, 2.581),
    200_000: (1.960, 2.576),
}


@pytest.mark.parametrize("freedom", REGISTRY)
def test_printed_tables(freedom: int) -> None:
    assert (round(quantile(freedom), 3), round(quantile(freedom, 0.99), 3)) == REGISTRY[freedom]


@pytest.mark.parametrize("t", [1e-3, 0.3, 1.0, 4.0, 100.0])
def test_closed_forms(t: float) -> None:
    assert within(t, 1) == pytest.approx(2 / math.pi * math.atan(t))  # Cauchy
    assert within(t, 2) == pytest.approx(t / math.sqrt(2 + t * t))
    assert within(t, 10**6) == pytest.approx(math.erf(t / math.sqrt(2)), abs=1e-6)  # nearly normal


@pytest.mark.parametrize(("freedom", "confidence"), [(0, 0.95), (-1, 0.95), (3, 0.0), (3, 1.0)])
def test_what_has_no_quantile(freedom: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="expected at least 1 degree of freedom"):
        quantile(freedom, confidence)
