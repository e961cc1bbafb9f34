"""Conditions on a run's figures, by which it ends."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping, Sequence

CONDITION = re.compile(r"\s*(\S+?)\s*(<=|>=|<|>)\s*(\S+)\s*")
COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def parsed(condition: str) -> tuple[str, str, float]:
    """(figure, comparison, value) of `FIGURE < VALUE`, or with >, <= or >=. Raises ValueError."""
    found = CONDITION.fullmatch(condition)
    try:
        if not found:
            raise ValueError
        value = float(found[3])
        if not math.isfinite(value):
            raise ValueError
    except ValueError:
        raise ValueError(
            "expected FIGURE < VALUE (or >, <=, >=) with a figure of metrics.jsonl, such as "
            f"held_out/ocr/exact < 0.3, got {condition!r}"
        ) from None
    return found[1], found[2], value


def met(conditions: Sequence[str], record: Mapping[str, float]) -> str:
    """The first condition that an iteration's metrics meet; empty: none. Figures that are not there
    meet none."""
    for condition in conditions:
        figure, comparison, value = parsed(condition)
        if figure in record and COMPARE[comparison](record[figure], value):
            return condition
    return ""
