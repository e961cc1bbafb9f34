"""An iteration's trees, as the driver has them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from branchgrpo.algo.tree import trainable
from branchgrpo.service import Reference
from branchgrpo.types import F32, BranchPlan, SegmentHeader, Subtree


@dataclass(frozen=True, kw_only=True)
class Scouted:
    """What scouts told and took: candidates that were grown cheaply, to choose what is grown in
    full."""

    reward: float  # their mean
    forwards: int  # rows sent through the model
    halved: int  # as of SegmentHeader, summed
    # rank correlation of their rewards with those of what was grown again, mean over prompts
    agreement: float


@dataclass
class RolloutBatch:
    """Grown and scored trees: headers and scores here, everything large by reference."""

    # → Conditioning of one row, by prompt index
    conditioning: list[Reference] = field(default_factory=list)
    segments: list[tuple[SegmentHeader, Reference]] = field(default_factory=list)
    media: list[tuple[tuple[Subtree, ...], Reference]] = field(default_factory=list)
    views: list[Reference] = field(default_factory=list)  # → NodeViews, where asked for
    # (prompt index, tree), rising → trained scores [R, L]
    scores: dict[tuple[int, int], F32] = field(default_factory=dict)
    # (prompt index, tree), rising → their weighted sum [L]
    rewards: dict[tuple[int, int], F32] = field(default_factory=dict)
    parts: dict[str, dict[tuple[int, int], F32]] = field(default_factory=dict)
    # reward → features [L, D] by (prompt index, tree), where they were asked for
    features: dict[str, dict[tuple[int, int], F32]] = field(default_factory=dict)
    truncated: int = 0  # prompts that the text encoders cut short
    retries: int = 0  # of rewards
    # prompt indices without rewards, whose trees are left out; and why
    dropped: dict[int, str] = field(default_factory=dict)
    # encode, grow, score: from the end of the phase before to the end of its last task; of
    # encoding, what was waited for; scout: what of growing and scoring went into scouts
    seconds: dict[str, float] = field(default_factory=dict)
    scouted: Scouted | None = None  # where there were scouts, before the trees

    @property
    def forwards(self) -> int:
        """Rows sent through the model, scouts' among them."""
        own = sum(header.forwards for header, _ in self.segments)
        return own + (self.scouted.forwards if self.scouted else 0)

    @property
    def halved(self) -> int:
        """How often batches were, for want of memory, with scouts among them."""
        own = sum(header.halved for header, _ in self.segments)
        return own + (self.scouted.halved if self.scouted else 0)

    def edges(self, plan: BranchPlan) -> int:
        """Edges of all trees that an update may train on, at least 1."""
        return max(1, len(self.scores) * int(trainable(plan).sum()))

    def part(self, name: str) -> F32:
        """Scores of all leaves under one name, by (prompt index, tree, leaf)."""
        return np.concatenate(list(self.parts[name].values()))

    def leaf_rewards(self) -> F32:
        """[trees, L] rewards, trees by (prompt index, tree)."""
        return np.stack(list(self.rewards.values()))

    def total(self) -> F32:
        """Rewards of all leaves, in the same order."""
        return np.concatenate(list(self.rewards.values()))
