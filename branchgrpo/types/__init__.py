"""What crosses a boundary: between steps of the algorithm, and between processes.

N nodes (root 0), edge i = parent[i] → i, T steps, L leaves, S latent shape, P prompts. All arrays
are numpy, so that Ray's object store serves them without a copy. Shapes are checked at
construction.
"""

from branchgrpo.types.arrays import F32, I32, U8, Bool
from branchgrpo.types.component import Component
from branchgrpo.types.learning import (
    LearnerShard,
    PointShard,
    RewardScores,
    Shard,
    StepStats,
    TreeCredit,
    WeightUpdate,
)
from branchgrpo.types.plan import BRANCH_NOISES, DETERMINISTIC, BranchPlan
from branchgrpo.types.rollouts import EncodedPrompts, GrownSegment, ScoreRequest, SegmentRequest
from branchgrpo.types.samples import Picture, Sample
from branchgrpo.types.trees import (
    EVALUATION,
    Conditioning,
    LeafMedia,
    NodeViews,
    SegmentHeader,
    Subtree,
    TreeHeader,
    TreeKey,
    TreePayload,
)

__all__ = [
    "BRANCH_NOISES",
    "DETERMINISTIC",
    "EVALUATION",
    "F32",
    "I32",
    "U8",
    "Bool",
    "BranchPlan",
    "Component",
    "Conditioning",
    "EncodedPrompts",
    "GrownSegment",
    "LeafMedia",
    "LearnerShard",
    "NodeViews",
    "Picture",
    "PointShard",
    "RewardScores",
    "Sample",
    "ScoreRequest",
    "SegmentHeader",
    "SegmentRequest",
    "Shard",
    "StepStats",
    "Subtree",
    "TreeCredit",
    "TreeHeader",
    "TreeKey",
    "TreePayload",
    "WeightUpdate",
]
