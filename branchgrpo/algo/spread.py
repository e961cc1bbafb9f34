"""How rewards spread in trees: between siblings, and how many independent leaves that makes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from branchgrpo.algo.credit import MIN_SPREAD
from branchgrpo.algo.tree import topology
from branchgrpo.types import F32, BranchPlan

Leaves = Mapping[tuple[int, int], F32]
"""(prompt index, tree) → the rewards of its leaves [L]."""


def sibling_spreads(plan: BranchPlan, leaves: Leaves) -> list[float]:
    """Mean unbiased std of siblings' mean leaf rewards at each split, over all its nodes and trees;
    of a comb, of a step's random children."""
    topo = topology(plan)
    rewards = np.stack(list(leaves.values())).astype(np.float64)
    # [trees, L + 1] sums of all leaves before one
    before = np.pad(rewards.cumsum(1), ((0, 0), (1, 0)))
    found = []
    for step in plan.splits:
        nodes = topo.level(step + 1)
        nodes = nodes[topo.stochastic[nodes]]
        first, count = topo.leaf_first[nodes], topo.leaf_count[nodes]
        means = (before[:, first + count] - before[:, first]) / count
        siblings = means.reshape(len(rewards), -1, plan.fanout[step])
        found.append(float(siblings.std(axis=2, ddof=1).mean()))
    return found


def effective_samples(plan: BranchPlan, leaves: Leaves) -> float:
    """Effective number of independent leaves of a prompt: of its L leaves, in all its trees, how
    many independent ones would know its mean reward as well.

    n = L / (1 + Σ_d pairs_d · 2/L · ρ_d), over the pairs of leaves that part at d: the variance of
    one leaf over that of their mean, of the prompt as given. ρ_d = 1 − γ_d/γ_0 is the leaves'
    correlation, where γ_d is the mean of (r_i − r_j)²/2 over all such pairs of the iteration:
    unbiased, and equal to the analysis of variance where trees are balanced. d = 0 are the pairs
    that part first (in different trees, if there are such, else at the first split); they count as
    independent, since what all leaves of a prompt share cannot be told from the prompt. Between 1
    (all leaves of a prompt are equal) and L (chains).
    """
    names = sorted(leaves)
    rewards = np.stack([leaves[name] for name in names]).astype(np.float64)
    prompts = len({prompt for prompt, _ in names})
    count = rewards.size / prompts
    pairs, differences = _by_parting(plan, names, rewards)
    if not len(pairs):
        return 1.0
    semivariance = differences / pairs / 2
    if semivariance.max() < MIN_SPREAD**2:
        return 1.0
    correlation = 1.0 - semivariance / max(semivariance[0], MIN_SPREAD**2)
    shared = float((pairs / prompts * 2 / count * correlation).sum())
    return float(count / max(1.0, 1.0 + shared))


def _by_parting(
    plan: BranchPlan, names: list[tuple[int, int]], rewards: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(number of pairs, sum of their squared differences) [D] of the pairs of leaves that part at
    each place, from the prompt down, in all prompts; places where none part are left out."""
    topo, size = topology(plan), rewards.shape[1]
    chains = plan.chains if plan.shared_root else 1  # trees from one root noise
    groups = [
        _numbered([(row, 0) for row, _ in names]).repeat(size),
        _numbered([(row, tree // chains) for row, tree in names]).repeat(size),
        _numbered(names).repeat(size),
    ]
    for level in range(1, plan.steps + 1):
        nodes = topo.level(level)
        # [L] of each leaf, its ancestor's place in the level
        ancestor = np.arange(len(nodes)).repeat(topo.leaf_count[nodes])
        groups.append((np.arange(len(names))[:, None] * len(nodes) + ancestor).ravel())
    # differences do not change, and small numbers lose nothing in their squares
    mean = np.bincount(groups[0], rewards.ravel()) / np.bincount(groups[0])
    values = rewards.ravel() - mean[groups[0]]
    within = np.array([_within(group, values) for group in groups])
    parting = within[:-1] - within[1:]  # together here, apart at the next place
    parting = parting[parting[:, 0] > 0]
    return parting[:, 0], parting[:, 1].clip(0.0)


def _numbered(names: list[tuple[int, int]]) -> NDArray[np.int64]:
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    return np.array([places[name] for name in names])


def _within(group: NDArray[np.int64], values: NDArray[np.float64]) -> tuple[float, float]:
    """(number of pairs, sum of their squared differences) of values that are in one group."""
    size = np.bincount(group)
    total, squares = np.bincount(group, values), np.bincount(group, values**2)
    # Σ over pairs of (a − b)² = n·Σ a² − (Σ a)²
    return float((size * (size - 1) / 2).sum()), float((size * squares - total**2).sum())
