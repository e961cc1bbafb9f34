"""What connectionist temporal classification says of a text (Graves et al. 2006, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from branchgrpo.types import F32

SMALLEST = 1e-8
"""Probabilities below count as this one, so that no frame forbids a text."""


def log_likelihood(probability: F32, targets: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """[B] log-probabilities of targets, each at least one code; −inf where the frames cannot hold
    one.

    probability: [B, time, alphabet] of each frame; code 0 is the blank.
    """
    lengths = np.array([len(codes) for codes in targets])
    # a text may begin and end with a blank, and have one between any two codes: [B, S]
    states = np.zeros((len(targets), 2 * lengths.max() + 1), np.int64)
    for row, codes in zip(states, targets, strict=True):
        row[1 : 2 * len(codes) : 2] = codes
    # only the blank between two unlike codes may be left out
    passed = np.where((states[:, 2:] != 0) & (states[:, 2:] != states[:, :-2]), 0.0, -np.inf)
    seen = np.take_along_axis(probability, states[:, None], axis=2)
    log_p = np.log(np.maximum(seen.astype(np.float64), SMALLEST)).swapaxes(0, 1)
    # of all paths so far that have come to a state: [B, S]
    reached = np.full(states.shape, -np.inf)
    reached[:, :2] = log_p[0, :, :2]
    for frame in log_p[1:]:
        ways = reached.copy()
        ways[:, 1:] = np.logaddexp(ways[:, 1:], reached[:, :-1])
        ways[:, 2:] = np.logaddexp(ways[:, 2:], reached[:, :-2] + passed)
        reached = ways + frame
    rows = np.arange(len(targets))
    found: NDArray[np.float64] = np.logaddexp(
        reached[rows, 2 * lengths], reached[rows, 2 * lengths - 1]
    )
    return found
