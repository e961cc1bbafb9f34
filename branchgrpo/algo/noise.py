"""Noise keyed by (seed, iteration, prompt, tree, node): the same tree on any number of workers.

Every noise is drawn on the CPU from a counter-based generator, so neither the device, the batch it
is drawn in, nor the order of work can change it.
"""

from __future__ import annotations

import hashlib
import math
import struct
from typing import TYPE_CHECKING

import numpy as np

from branchgrpo.types import TreeKey

if TYPE_CHECKING:
    import torch

_OWN, _SHARED, _LEVELS, _ADDED = 0, 1, 2, 3


def draw(
    seed: int, key: TreeKey, node: int, shape: tuple[int, ...], stream: int = _OWN
) -> torch.Tensor:
    """Standard normal noise [*shape] float32 that belongs to one node of one tree."""
    import torch

    generator = _generator(seed, key, node, stream)
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


def levels(seed: int, key: TreeKey, node: int) -> np.random.Generator:
    """What draws the noise levels that a leaf is trained at by a loss of the forward process."""
    return _generator(seed, key, node, _LEVELS)


def added(seed: int, key: TreeKey, node: int, index: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Noise [*shape] that is added to a leaf at the level of this number of those."""
    return draw(seed, key=key, node=node, shape=shape, stream=_ADDED + index)


def _generator(seed: int, key: TreeKey, node: int, stream: int) -> np.random.Generator:
    numbers = (seed, key.iteration, key.prompt, key.tree, node, stream)
    name = struct.pack("<6q", *numbers)
    digest = hashlib.blake2b(name, digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def branch(
    form: str,
    scale: float,
    seed: int,
    key: TreeKey,
    parent: int,
    children: list[int],
    shape: tuple[int, ...],
) -> torch.Tensor:
    """Noises [children, *shape] of all children of one node; each child's marginal is N(0, I).

    correlated: ξ_b = (ξ_0 + s·η_b)/√(1+s²), ξ_0 shared by the siblings (the paper's form).
    scaled:     ξ_b independent; the transition's std is multiplied instead, see `std_factor`.
    antithetic: ξ_2k+1 = −ξ_2k, so a pair's mean is the parent's mean.
    independent: ξ_b independent.
    """
    import torch

    if len(children) == 1:
        return draw(seed, key, children[0], shape)[None]
    if form == "antithetic":
        first_of_pairs = [draw(seed, key, child, shape) for child in children[::2]]
        return torch.stack([sign * xi for xi in first_of_pairs for sign in (1.0, -1.0)])
    own = torch.stack([draw(seed, key, child, shape) for child in children])
    if form == "correlated":
        shared = draw(seed, key=key, node=parent, shape=shape, stream=_SHARED)
        return (shared + scale * own) / math.sqrt(1.0 + scale**2)
    return own


def std_factor(form: str, scale: float, children: int) -> float:
    """What the transition's std is multiplied by at a split; the log-prob must use the same."""
    return scale if form == "scaled" and children > 1 else 1.0
