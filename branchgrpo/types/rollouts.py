"""What the driver and rollout workers tell one another. A reference is a handle on a result that
stays where it was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from branchgrpo.types.samples import Sample
from branchgrpo.types.trees import SegmentHeader, Subtree


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedPrompts:
    """Rollout worker → driver. Each prompt's encoding is an object of its own, so that whoever
    needs one reads that alone."""

    truncated: int  # prompts that are longer than the text encoders take
    bytes: int  # of all encodings
    conditioning: Sequence[Any]  # reference → Conditioning of one row, by prompt

    def objects(self) -> list[Any]:
        """The parts as separate results, the small one first."""
        return [replace(self, conditioning=()), *self.conditioning]

    @classmethod
    def of(cls, first: Self, rest: Sequence[Any]) -> Self:
        """From the first and references to the other `objects`."""
        return replace(first, conditioning=tuple(rest))


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentRequest:
    """Driver → rollout worker: grow these subtrees from level `start` to `stop`."""

    version: int  # of the weights that must grow them
    subtrees: tuple[Subtree, ...]
    start: int
    stop: int
    clean: bool = False  # keep the leaves' latents, not what random edges join
    viewed: bool = False  # decode x̂0 on the way, for people to look at: NodeViews

    @property
    def prompts(self) -> list[int]:
        """Indices of the prompts whose encodings it takes, rising."""
        return sorted({subtree.prompt_index for subtree in self.subtrees})


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRequest:
    """Driver → reward worker: score leaves of these subtrees, by some of the config's rewards.

    The pictures themselves come as one LeafMedia after the other, of which not every subtree need
    be asked for.
    """

    rewards: tuple[int, ...]  # indices in Config.all_rewards
    subtrees: tuple[Subtree, ...]  # in the order that scores are wanted in
    places: tuple[tuple[int, int], ...]  # of each: which LeafMedia, and which subtree of it
    samples: tuple[Sample, ...]  # of each


@dataclass(frozen=True, kw_only=True, slots=True)
class GrownSegment:
    """Rollout worker → driver, rollout workers, reward workers and learners. The header is small;
    each other part is an object of its own, so that whoever needs one reads that alone."""

    header: SegmentHeader
    payload: Any  # reference → TreePayload
    views: Any = None  # reference → NodeViews, where they were asked for
    media: Any = None  # reference → LeafMedia, at the last level
    frontier: tuple[Any, ...] = ()  # above it → latents of each node, by subtree and node

    def objects(self) -> list[Any]:
        """The parts as separate results."""
        last = [self.media] if self.media is not None else list(self.frontier)
        views = [self.views] if self.views is not None else []
        return [self.header, self.payload, *views, *last]

    @classmethod
    def of(cls, header: SegmentHeader, rest: Sequence[Any], leaves: bool, viewed: bool) -> Self:
        """From the header and references to the other `objects`."""
        payload, *last = rest
        views = last.pop(0) if viewed else None
        if leaves:
            return cls(header=header, payload=payload, views=views, media=last[0])
        return cls(header=header, payload=payload, views=views, frontier=tuple(last))
