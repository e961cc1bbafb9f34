"""What happens at each denoising step of an iteration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from branchgrpo.types.arrays import F32, check_shapes

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
    frozen: tuple[bool, ...] = ()  # [T] steps of weights that don't train; empty = none

    def __post_init__(self) -> None:
        steps = len(self.fanout)
        check_shapes(self, sigmas=(self.sigmas, (steps + 1,)))
        if (
            not (len(self.kernel) == len(self.noise_scale) == steps)
            or len(self.weight) not in (0, steps)
            or len(self.frozen) not in (0, steps)
        ):
            raise ValueError(
                f"BranchPlan: fanout has {steps} steps, kernel {len(self.kernel)}, "
                f"noise_scale {len(self.noise_scale)}, weight {len(self.weight)}, "
                f"frozen {len(self.frozen)}"
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
        """[T] whether a step has edges with a log-prob."""
        return tuple(kernel not in DETERMINISTIC for kernel in self.kernel)

    @property
    def trainable(self) -> tuple[bool, ...]:
        """[T] whether a step's edges can be trained: they are random, of weights that train."""
        frozen = self.frozen or (False,) * self.steps
        return tuple(
            random and not still for random, still in zip(self.stochastic, frozen, strict=True)
        )

    @property
    def splits(self) -> tuple[int, ...]:
        """Steps at which nodes have more than one child."""
        return tuple(step for step, fanout in enumerate(self.fanout) if fanout > 1)

    @property
    def weights(self) -> F32:
        """[T] factor on the loss of a step's edges."""
        return np.array(self.weight or (1.0,) * self.steps, np.float32)
