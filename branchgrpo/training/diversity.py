"""How far apart the pictures of one prompt are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from branchgrpo.report.summary import interval
from branchgrpo.types import F32, U8

PIXELS, LATENTS = "pixels", "latents"

Diversity = dict[str, F32]
"""[P] mean distance between a prompt's pictures, by what was compared: `pixels`, the autoencoder's
`latents`, or the features of a reward's network, by its title."""


def pixel_distance(pixels: U8) -> float:
    """Mean over pairs of pictures [n, …] of their root mean square difference, 0 … 1. It rises with
    contrast as well."""
    flat = pixels.reshape(len(pixels), -1).astype(np.float64) / 255.0
    pairs = [
        np.sqrt(np.square(one - other).mean())
        for index, one in enumerate(flat)
        for other in flat[index + 1 :]
    ]
    return float(np.mean(pairs))


def cosine_distance(features: F32) -> float:
    """Mean over pairs of pictures' features [n, …] of 1 − their cosine, 0 … 2: whatever their
    lengths."""
    flat = features.reshape(len(features), -1).astype(np.float64)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    above = np.triu_indices(len(flat), 1)
    return float(1.0 - (flat @ flat.T)[above].mean())


def summarised(after: Diversity, before: Diversity | None = None) -> dict[str, Any]:
    """By what was compared: mean, low and high (95 %) and n; and where it is known, the mean
    `before` and the ratio after ÷ before of the means."""
    found: dict[str, Any] = {}
    for name, values in after.items():
        found[name] = interval(values)
        if before and name in before:
            start = float(before[name].mean())
            found[name] |= {
                "before": start,
                "ratio": found[name]["mean"] / start if start else None,
            }
    return found


def shown(found: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Of what `summarised` gave the row that tables show: a reward's features, else the latents."""
    if not found:
        return None
    networks = [name for name in found if name not in (PIXELS, LATENTS)]
    row: Mapping[str, Any] = found[(networks or [LATENTS])[0]]
    return row
