"""Choosing where trees split from what splitting there was worth (ours; off unless
method.adapt_every is set)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from branchgrpo.algo.methods.base import MethodRun
from branchgrpo.algo.schedule import Schedule
from branchgrpo.types import F32, BranchPlan

_MEMORY = 0.2  # weight of the newest measurement


class SplitChooser(MethodRun):
    """Measures each split's own part of the reward variance, and moves the splits to where it is
    largest.

    Until every step has been tried, the least recently tried ones come next. From then on all
    splits but one go to the best steps, and one to the step that was not tried for longest, so that
    the measurements stay fresh.
    """

    def __init__(self, method: Any, steps: int, seed: int):
        """method: options that have `splits` and `adapt_every`, as BranchMethod has."""
        super().__init__(method, seed)
        self.method, self.iterations = method, 0
        # [T−1] mean variance that a split at this step adds between siblings
        self.worth = np.full(steps - 1, np.nan)
        self.tried = np.full(steps - 1, -1)  # iteration of the last measurement
        # of steps that are equal otherwise
        self.order = np.random.default_rng(seed).permutation(steps - 1)

    def plan(self, iteration: int, schedule: Schedule) -> BranchPlan:
        """The plan of one iteration, with the present splits."""
        found: BranchPlan = self.method.plan(iteration, schedule, self.seed)
        return found

    def observe(self, plan: BranchPlan, rewards: F32) -> dict[str, float]:
        """Take note of the rewards [trees, L] of an iteration; every `adapt_every` of them choose
        new splits. Returns the splits that the plan had."""
        for step, value in zip(
            plan.splits,
            variance_components(
                rewards, plan.fanout[plan.splits[0]], plan.branch_noise, plan.branch_scale
            ),
            strict=True,
        ):
            known = np.isfinite(self.worth[step])
            self.worth[step] = (
                (1 - _MEMORY) * self.worth[step] + _MEMORY * value if known else value
            )
            self.tried[step] = self.iterations
        self.iterations += 1
        if self.iterations % self.method.adapt_every == 0:
            self.method = self.method.model_copy(update={"splits": self._choose()})
        return {f"splits/{index}": float(step) for index, step in enumerate(plan.splits)}

    def state(self) -> dict[str, Any]:
        """What it has measured, for a checkpoint."""
        worth = [None if np.isnan(value) else float(value) for value in self.worth]
        return {
            "iterations": self.iterations,
            "worth": worth,
            "tried": self.tried.tolist(),
            "splits": list(self.method.splits),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from there. Raises ValueError for what `state` does not return, for so many
        steps."""
        counts = [state.get("iterations"), *_list(state.get("tried"))]
        worth = _list(state.get("worth"))
        splits = _list(state.get("splits"))
        fits = all(type(one) is int and -1 <= one < 1 << 53 for one in counts) and all(
            one is None or type(one) is float for one in worth
        )
        fits = fits and len(worth) == len(counts) - 1 == len(self.worth) and bool(splits)
        if (
            not fits
            or not all(type(one) is int and 0 <= one < len(worth) for one in splits)
            or sorted(set(splits)) != splits
        ):
            raise ValueError(f"expected splits, and what was measured at {len(self.worth)} steps")
        self.iterations = int(state["iterations"])
        self.worth = np.array([np.nan if value is None else value for value in state["worth"]])
        self.tried = np.array(state["tried"])
        self.method = self.method.model_copy(update={"splits": tuple(state["splits"])})

    def _choose(self) -> tuple[int, ...]:
        count = len(self.method.splits)
        by_age = sorted(self.order.tolist(), key=lambda step: self.tried[step])
        if np.isnan(self.worth).any():
            return tuple(sorted(by_age[:count]))
        best = sorted(self.order.tolist(), key=lambda step: -self.worth[step])[: count - 1]
        fresh = next(step for step in by_age if step not in best)
        return tuple(sorted([*best, fresh]))


def variance_components(
    leaves: F32, fanout: int, noise: str = "independent", scale: float = 4.0
) -> list[float]:
    """What each split adds to the variance between its children, from leaf rewards [trees,
    fanout^splits].

    V_j, the mean unbiased variance of siblings' mean rewards at split j, is C_j + R_{j+1}: what the
    split itself does, plus what the splits below leave in the mean reward of a child. So C_j = V_j
    − R_{j+1}, not below 0, and R_{j+1} follows from the noise of siblings (components of variance
    of a balanced nested design):

    independent, scaled: V_{j+1} / fanout.
    correlated: the siblings' common part, too, which V_{j+1} does not see: V_{j+1} / fanout +
    C_{j+1} / scale².
    antithetic: 0, since opposite noises cancel in the mean of a pair (where the reward is linear in
    the noise).
    """
    between, means = [], leaves.astype(np.float64)
    while means.shape[1] > 1:
        siblings = means.reshape(len(means), -1, fanout)
        between.append(float(siblings.var(axis=2, ddof=1).mean()))
        means = siblings.mean(axis=2)
    found, left = [], 0.0
    for here in between:  # from the last split to the first
        own = here - left
        found.append(max(0.0, own))
        left = 0.0 if noise == "antithetic" else here / fanout
        if noise == "correlated":
            left += own / scale**2
    return found[::-1]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
