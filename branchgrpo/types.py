"""What crosses a boundary: between steps of the algorithm, and between processes.

N nodes (root 0), edge i = parent[i] → i, T steps, L leaves, S latent shape, P prompts. All arrays
are numpy, so that Ray's object store serves them without a copy. Shapes are checked at
construction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
Bool = NDArray[np.bool_]
U8 = NDArray[np.uint8]

EVALUATION = -1
"""The iteration number of evaluation trees: their noise never depends on how far training is."""


class Component(BaseModel):
    """Base of everything that a config section names; `name` is its key in its table.

    It is both the options and the component itself: a config section, once validated, can be
    called.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    if TYPE_CHECKING:
        name: str

    # keys that name a file or a folder which every machine must have; empty texts name none
    file_keys: ClassVar[tuple[str, ...]] = ()

    @property
    def called(self) -> str:
        """Its name; of a component from a file or a module (PLACE:NAME) what it is called there."""
        return str(getattr(self, "name", type(self).__name__)).rpartition(":")[2]

    def needed_files(self) -> list[str]:
        """Files and folders that every machine must have, as the config names them."""
        return [path for key in self.file_keys if (path := str(getattr(self, key)))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What a picture or video was drawn for, as a reward sees it."""

    prompt: str


def _check(owner: object, **shapes: tuple[NDArray[Any], tuple[int | None, ...]]) -> None:
    """Raise ValueError unless every array has its shape; None leaves a dimension free."""
    for name, (array, shape) in shapes.items():
        fits = array.ndim == len(shape) and all(
            want in (None, got) for want, got in zip(shape, array.shape, strict=True)
        )
        if not fits:
            raise ValueError(
                f"{type(owner).__name__}.{name}: expected shape {shape}, got {array.shape}"
            )


DETERMINISTIC = ("ode", "dpm")
"""Kernels without noise: their edges have no log-prob and are never trained."""

BRANCH_NOISES = ("correlated", "scaled", "antithetic", "independent")


@dataclass(frozen=True)
class BranchPlan:
    """What happens at each of the T denoising steps of one iteration; every method is such a plan.

    Two shapes of tree: by default every node of step i has fanout[i] children. A `comb` tree has
    one deterministic trunk; at step i its trunk node alone has fanout[i] random children, each of
    which goes on deterministically, and the trunk ends after its last split.
    """

    sigmas: F32  # [T+1] noise levels, 1 … 0
    fanout: tuple[int, ...]  # [T] children per node; of a comb: random children of the trunk node
    kernel: tuple[str, ...]  # [T] a name in kernels.KERNELS, or `dpm`
    noise_scale: tuple[float, ...]  # [T] the kernel's own noise parameter (η of `dance`)
    branch_noise: str = "correlated"  # how siblings' noises relate, see noise.py
    branch_scale: float = 4.0  # s of `correlated`, the factor on std of `scaled`
    weight: tuple[float, ...] = ()  # [T] factor on the loss of a step's edges; empty = 1 everywhere
    comb: bool = False  # the shape, see above
    chains: int = 1  # trees of a prompt that belong together
    shared_root: bool = True  # … and start from one root noise
    last_edge: bool = False  # the last step may be random (the picture is x̂0 all the same)

    def __post_init__(self) -> None:
        steps = len(self.fanout)
        _check(self, sigmas=(self.sigmas, (steps + 1,)))
        if not (len(self.kernel) == len(self.noise_scale) == steps) or len(self.weight) not in (
            0,
            steps,
        ):
            raise ValueError(
                f"BranchPlan: fanout has {steps} steps, kernel {len(self.kernel)}, "
                f"noise_scale {len(self.noise_scale)}, weight {len(self.weight)}"
            )
        if min(self.fanout) < 1 or self.chains < 1 or not np.all(np.diff(self.sigmas) < 0):
            raise ValueError("BranchPlan: every fanout and chains must be ≥ 1 and sigmas must fall")
        if self.stochastic[-1] and (not self.last_edge or self.kernel[-1] == "cps"):
            raise ValueError(
                "BranchPlan: the last step must be `ode` or `dpm`: its noise could not "
                "reach the image"
            )
        if self.branch_noise not in BRANCH_NOISES:
            raise ValueError(
                "BranchPlan: expected branch_noise correlated, scaled, antithetic or "
                f"independent, got {self.branch_noise!r}"
            )
        if self.branch_noise == "antithetic" and any(
            fanout > 1 and fanout % 2 for fanout in self.fanout
        ):
            raise ValueError(
                f"BranchPlan: antithetic noise pairs children, got fanout {self.fanout}"
            )
        for step, (fanout, random) in enumerate(zip(self.fanout, self.stochastic, strict=True)):
            if fanout > 1 and not random:
                raise ValueError(
                    f"BranchPlan: step {step} splits into {fanout} but its kernel is "
                    f"`{self.kernel[step]}`: all children would be equal"
                )
        if "dpm" in self.kernel and set(self.kernel[self.kernel.index("dpm") :]) != {"dpm"}:
            raise ValueError(
                f"BranchPlan: the multistep solver `dpm` must run to the end, got {self.kernel}"
            )

    @property
    def steps(self) -> int:
        """T."""
        return len(self.fanout)

    @property
    def stochastic(self) -> tuple[bool, ...]:
        """[T] whether a step has edges with a log-prob, which can be trained."""
        return tuple(kernel not in DETERMINISTIC for kernel in self.kernel)

    @property
    def splits(self) -> tuple[int, ...]:
        """Steps at which nodes have more than one child."""
        return tuple(step for step, fanout in enumerate(self.fanout) if fanout > 1)

    @property
    def weights(self) -> F32:
        """[T] factor on the loss of a step's edges."""
        return np.array(self.weight or (1.0,) * self.steps, np.float32)


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
    prompt: int  # row in the iteration's Conditioning
    node: int


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts: arrays of P rows each, under the names that the model adapter gives them."""

    arrays: Mapping[str, NDArray[Any]]
    rows: int

    def __post_init__(self) -> None:
        for name, array in self.arrays.items():
            if array.shape[0] != self.rows:
                raise ValueError(
                    f"Conditioning.{name}: expected {self.rows} rows, got {array.shape[0]}"
                )


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
    halved: int = 0  # how often rollout.max_batch was halved on the way, for want of memory

    def __post_init__(self) -> None:
        _check(self, log_prob=(self.log_prob, (len(self.subtrees), None)))


@dataclass(frozen=True)
class TreePayload:
    """Latents that the learner may need of one segment: parents and children of its stochastic
    edges."""

    subtree: I32  # [m] which of the segment's subtrees
    node: I32  # [m] node number in its tree
    latents: NDArray[Any]  # [m, *S] as wire.to_numpy gives it
    dtype: str  # torch name of the storage dtype
    # [p] rows of the parents of stochastic edges, where the loss needs the behaviour policy's
    # velocity
    parent: I32
    velocity: F32  # [p, *S] that velocity; p = 0 where it does not

    def __post_init__(self) -> None:
        _check(
            self,
            subtree=(self.subtree, (len(self.latents),)),
            node=(self.node, (len(self.latents),)),
            parent=(self.parent, (len(self.velocity),)),
        )


@dataclass(frozen=True)
class LeafMedia:
    """Decoded leaves of a segment's M subtrees, subtree by subtree, leaves by rising node
    number."""

    pixels: U8  # [M*l, F, H, W, 3]; F = 1 for images
    subtrees: tuple[Subtree, ...]

    def __post_init__(self) -> None:
        _check(self, pixels=(self.pixels, (None, None, None, None, 3)))
        if not self.subtrees or len(self.pixels) % len(self.subtrees):
            raise ValueError(
                f"LeafMedia: {len(self.pixels)} pictures cannot belong to "
                f"{len(self.subtrees)} subtrees alike"
            )


@dataclass(frozen=True)
class RewardScores:
    """Scores of a batch of media by a worker's R rewards, in the batch's order."""

    trained: F32  # [R, L] what trains
    parts: Mapping[str, F32]  # [L] each: what is reported
    ok: Bool  # [L] False where a reward failed for good
    retries: int = 0  # attempts after the first ones
    reason: str = ""  # of the last failure

    def __post_init__(self) -> None:
        count = len(self.ok)
        _check(self, trained=(self.trained, (None, count)), ok=(self.ok, (count,)))
        for name, part in self.parts.items():
            if part.shape != (count,):
                raise ValueError(f"RewardScores.{name}: expected {count} scores, got {part.shape}")


@dataclass(frozen=True)
class TreeHeader:
    """One whole tree as the credit functions see it, assembled from its segments' headers."""

    key: TreeKey
    prompt: int  # row in the iteration's Conditioning
    policy_version: int
    log_prob: F32  # [N] 0 for deterministic edges
    leaf_reward: F32  # [L]

    def __post_init__(self) -> None:
        _check(self, log_prob=(self.log_prob, (None,)), leaf_reward=(self.leaf_reward, (None,)))


@dataclass(frozen=True)
class TreeCredit:
    """What each edge of a tree earned. Entry 0 (the root, which has no edge) is never kept."""

    node_reward: F32  # [N] leaf rewards fused upward
    advantage: F32  # [N] of the edge into the node
    keep: Bool  # [N] stochastic and not pruned
    weight_entropy: float = 1.0  # mean normalised entropy of the fusion weights; 1 = uniform

    def __post_init__(self) -> None:
        nodes = len(self.node_reward)
        _check(self, advantage=(self.advantage, (nodes,)), keep=(self.keep, (nodes,)))


@dataclass(frozen=True)
class LearnerShard:
    """One rank's part of an optimiser step: n parents with up to K child edges each, padded to
    equal n.

    Rows of `parents` are (tree, node); padding repeats the last parent with weight 0.
    """

    parents: I32  # [n, 2]
    edges: I32  # [n, K] child nodes, -1 where a parent has fewer
    advantage: F32  # [n, K]
    # [n, K] the plan's weight of the step / kept edges of the whole optimiser step, all ranks; 0
    # for padding
    weight: F32

    def __post_init__(self) -> None:
        count, width = self.edges.shape
        _check(
            self,
            parents=(self.parents, (count, 2)),
            advantage=(self.advantage, (count, width)),
            weight=(self.weight, (count, width)),
        )


@dataclass(frozen=True)
class WeightUpdate:
    """Header of one published version; the bytes travel beside it as lists of numpy arrays, one
    array for each tensor."""

    version: int
    digest: str  # wire.digest_of the tensors
    names: tuple[str, ...]
    dtypes: tuple[str, ...]  # torch names
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class StepStats:
    """What one update did, equal on every rank."""

    version: int  # of the weights after it
    loss: float
    ratio_deviation: float  # mean |ratio − 1|
    # max |ratio − 1| before the first optimiser step; NaN when the gate did not run
    on_policy_deviation: float
    clip_fraction: float
    kl: float  # mean KL to the base over trained edges; 0 when the loss has no such term
    learning_rate: float  # of the last optimiser step
    gradient_norm: float  # before clipping, mean over optimiser steps
    optimiser_steps: int
    skipped_steps: int  # gradient was not finite
    forwards: int  # distinct parents, all ranks
    edges: int  # trained edges, all ranks
    edges_stochastic: int  # before pruning
    edges_all: int  # of the trees, deterministic ones too
    weight_entropy: float
    advantage_abs: float
    fetched_bytes: int  # payload bytes this rank read
