"""Trees: their names, what they are grown from, and what is grown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from branchgrpo.types.arrays import F32, I32, U8, check_shapes

EVALUATION = -1
"""The iteration number of evaluation trees: their noise never depends on how far training is."""


@dataclass(frozen=True, order=True)
class TreeKey:
    """Names one tree of one run. All but the run's name determine, with the seed, every noise of
    that tree."""

    run: str
    iteration: int
    prompt: int  # index in the prompt list
    tree: int  # several trees of a prompt form one group


@dataclass(frozen=True)
class Subtree:
    """A piece of work for a rollout worker: the part of a tree below (and with) `node`."""

    key: TreeKey
    prompt_index: int  # place among the iteration's prompts
    node: int


BITS = "uint16"
"""How bfloat16, which numpy lacks, comes in arrays."""


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts: arrays of P rows each, under the names that the model adapter gives them.
    What is shorter than the longest of them ends in zeros."""

    arrays: Mapping[str, NDArray[Any]]
    rows: int
    # of arrays whose dtype numpy lacks, by their names: bfloat16, which comes as uint16
    dtypes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, array in self.arrays.items():
            if array.shape[0] != self.rows:
                raise ValueError(
                    f"Conditioning.{name}: expected {self.rows} rows, got {array.shape[0]}"
                )
            if array.dtype.name == BITS and name not in self.dtypes:
                raise ValueError(
                    f"Conditioning.{name}: expected the dtype that these {BITS} numbers are the "
                    "bits of, got none"
                )

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    def take(self, rows: Sequence[int]) -> Self:
        """These rows, in this order."""
        arrays = {name: array[list(rows)] for name, array in self.arrays.items()}
        return type(self)(arrays, len(rows), self.dtypes)

    def split(self) -> list[Self]:
        """P of one row each, without a copy."""
        return [
            type(self)(
                {name: array[row : row + 1] for name, array in self.arrays.items()}, 1, self.dtypes
            )
            for row in range(self.rows)
        ]

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts in their order. What differs in length is padded with zeros at the
        end. Raises ValueError for parts that don't fit one another."""
        if len(parts) == 1:
            return parts[0]
        kinds = {
            tuple(
                (name, array.dtype.str, array.ndim, part.dtypes.get(name))
                for name, array in sorted(part.arrays.items())
            )
            for part in parts
        }
        if len(kinds) != 1:
            raise ValueError(
                "Conditioning: expected parts with the same arrays (name, dtype, dimensions), got "
                f"{' and '.join(str(kind) for kind in sorted(kinds, key=str))}"
            )
        arrays = {name: _padded([part.arrays[name] for part in parts]) for name in parts[0].arrays}
        return cls(arrays, sum(part.rows for part in parts), parts[0].dtypes)


def _padded(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The rows of all parts, as long as the longest."""
    shape = np.max([part.shape[1:] for part in parts], 0).astype(int)
    found = np.zeros((sum(map(len, parts)), *shape), parts[0].dtype)
    first = 0
    for part in parts:
        rows = slice(first, first + len(part))
        found[(rows, *(slice(size) for size in part.shape[1:]))] = part
        first = rows.stop
    return found


@dataclass(frozen=True)
class SegmentHeader:
    """The small part of a grown segment, which the driver sees: M subtrees, E stochastic edges
    each.

    Node numbers are not sent: the plan and (start, stop, node) determine them (tree.Topology).
    """

    subtrees: tuple[Subtree, ...]
    start: int  # level of the subtrees' roots
    stop: int  # level grown to; T means leaves
    policy_version: int
    log_prob: F32  # [M, E] mean log density of each stochastic edge, edges by rising node number
    forwards: int  # rows sent through the model, counted
    payload_bytes: int  # of latents kept for training
    halved: int = 0  # how often batches to grow or decode were on the way, for want of memory

    def __post_init__(self) -> None:
        check_shapes(self, log_prob=(self.log_prob, (len(self.subtrees), None)))


@dataclass(frozen=True)
class TreePayload:
    """Latents that the learner may need of one segment: parents and children of those of its
    stochastic edges that can be trained, or its leaves."""

    subtree: I32  # [m] which of the segment's subtrees
    node: I32  # [m] node number in its tree
    latents: NDArray[Any]  # [m, *S] as wire.to_numpy gives it
    dtype: str  # torch name of the storage dtype
    # [p] rows of the parents of such edges, where the loss needs the behaviour policy's
    # velocity
    parent: I32
    velocity: F32  # [p, *S] that velocity; p = 0 where it does not

    def __post_init__(self) -> None:
        check_shapes(
            self,
            subtree=(self.subtree, (len(self.latents),)),
            node=(self.node, (len(self.latents),)),
            parent=(self.parent, (len(self.velocity),)),
        )

    def float_latents(self) -> F32:
        """`latents` [m, *S] as float32."""
        if self.dtype == "bfloat16":  # the upper half of a float32's bits
            return (self.latents.astype(np.uint32) << 16).view(np.float32)
        return self.latents.astype(np.float32)


@dataclass(frozen=True)
class LeafMedia:
    """Decoded leaves of a segment's M subtrees, subtree by subtree, leaves by rising node
    number."""

    pixels: U8  # [M*l, F, H, W, 3]; F = 1 for images
    subtrees: tuple[Subtree, ...]

    def __post_init__(self) -> None:
        check_shapes(self, pixels=(self.pixels, (None, None, None, None, 3)))
        if not self.subtrees or len(self.pixels) % len(self.subtrees):
            raise ValueError(
                f"LeafMedia: {len(self.pixels)} pictures cannot belong to "
                f"{len(self.subtrees)} subtrees alike"
            )


@dataclass(frozen=True)
class NodeViews:
    """What a segment's nodes would have become: their x̂0, decoded. m of them, see
    tree.viewed_nodes."""

    keys: tuple[TreeKey, ...]  # [m] which tree
    node: I32  # [m] node number in it
    pixels: U8  # [m, H, W, 3]; of a video the frame in its middle

    def __post_init__(self) -> None:
        check_shapes(
            self,
            node=(self.node, (len(self.keys),)),
            pixels=(self.pixels, (len(self.keys), None, None, 3)),
        )


@dataclass(frozen=True)
class TreeHeader:
    """One whole tree as the credit functions see it, assembled from its segments' headers."""

    key: TreeKey
    prompt_index: int  # place among the iteration's prompts
    policy_version: int
    log_prob: F32  # [N] 0 for deterministic edges
    leaf_reward: F32  # [L]

    def __post_init__(self) -> None:
        check_shapes(
            self, log_prob=(self.log_prob, (None,)), leaf_reward=(self.leaf_reward, (None,))
        )
