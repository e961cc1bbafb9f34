"""Reward fusion: leaf rewards to every node of the tree (BranchGRPO, section on reward fusion)."""

from __future__ import annotations

import numpy as np

from branchgrpo.algo.tree import Topology
from branchgrpo.types import F32


def fuse(topo: Topology, leaf_reward: F32, log_prob: F32, beta: float) -> tuple[F32, float]:
    """r̄(n) = Σ_ℓ w_ℓ r_ℓ over the leaves below n, w = softmax(β · path log-prob from n to ℓ).

    leaf_reward [L], log_prob [N] per edge (0 where deterministic). Returns (r̄ [N], mean normalised
    entropy of w over nodes with more than one leaf). β = 0 gives uniform weights and entropy 1.
    Log-probs are means over dimensions, so the weights stay close to uniform; the entropy tells.
    """
    path = np.zeros(topo.nodes, np.float64)  # from the root to each node
    for level in range(1, len(topo.offset) - 1):
        nodes = topo.level(level)
        path[nodes] = path[topo.parent[nodes]] + log_prob[nodes]
    # log-probs down to n are common to all leaves below n, so the softmax needs the whole path only
    to_leaf = beta * path[topo.level(len(topo.offset) - 2)]
    reward = np.empty(topo.nodes, np.float32)
    entropies = []
    for node in range(topo.nodes):
        below = slice(topo.leaf_first[node], topo.leaf_first[node] + topo.leaf_count[node])
        weight = np.exp(to_leaf[below] - to_leaf[below].max())
        weight /= weight.sum()
        reward[node] = weight @ leaf_reward[below]
        if len(weight) > 1:
            entropies.append(
                -(weight * np.log(np.maximum(weight, 1e-300))).sum() / np.log(len(weight))
            )
    return reward, float(np.mean(entropies)) if entropies else 1.0


def back_up(topo: Topology, leaf: F32, log_prob: F32) -> tuple[F32, float]:
    """A(n) = Σ_c w_c A(c) over the children of n, level by level from the leaves [L] to the root; w
    = softmax over the children of log_prob [N] of the edges into them (TreeGRPO).

    Returns (A [N], mean normalised entropy of w over nodes with more than one child).
    """
    found = np.empty(topo.nodes, np.float64)
    last = len(topo.offset) - 2
    found[topo.level(last)] = leaf
    entropies = []
    for level in range(last - 1, -1, -1):
        nodes, below = topo.level(level), topo.level(level + 1)
        first, count = topo.first_child[nodes] - below[0], topo.child_count[nodes]
        given = log_prob[below].astype(np.float64)
        weight = np.exp(given - np.maximum.reduceat(given, first).repeat(count))
        weight /= np.add.reduceat(weight, first).repeat(count)
        found[nodes] = np.add.reduceat(weight * found[below], first)
        entropy = -np.add.reduceat(weight * np.log(np.maximum(weight, 1e-300)), first)
        entropies.append(entropy[count > 1] / np.log(count[count > 1]))
    every = np.concatenate(entropies)
    return found.astype(np.float32), float(every.mean()) if len(every) else 1.0
