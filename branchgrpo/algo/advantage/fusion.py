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
