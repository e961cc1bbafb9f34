"""What a tree's nodes say: of which kind they are, and their figures."""

from __future__ import annotations

from typing import Any

from branchgrpo.rollout.trees import GrownTree
from branchgrpo.types import DETERMINISTIC

ROOT, PLAIN, TRAINED, PRUNED = "root", "deterministic", "trained", "not trained"
"""What the edge into a node is."""


def kind(tree: GrownTree, node: int) -> str:
    """Of the edge into a node; with a loss on leaves, a leaf is what is trained."""
    if node == 0:
        return ROOT
    if tree.kept[node]:
        return TRAINED
    step = int(tree.topology.step[node])
    if tree.plan.kernel[step] in DETERMINISTIC or not tree.topology.stochastic[node]:
        return PLAIN
    return PRUNED


def figures(tree: GrownTree, node: int) -> dict[str, Any]:
    """A node's figures, by their names: text, or numbers of four digits."""
    topo, plan = tree.topology, tree.plan
    level, leaf = int(topo.step[node]) + 1, node - (topo.nodes - topo.leaves)
    found: dict[str, Any] = {
        "node": node,
        "after step": f"{level} of {plan.steps}",
        "noise level": _short(plan.sigmas[level]),
        "leaves below": int(topo.leaf_count[node]),
    }
    edge = kind(tree, node)
    found["leaf" if leaf >= 0 and tree.trained == "leaves" else "edge"] = edge
    if edge in (TRAINED, PRUNED):
        found["advantage"] = _short(tree.advantage[node])
    if node and topo.stochastic[node]:
        found["log-prob"] = _short(tree.log_prob[node])
    if leaf >= 0:
        found["reward"] = _short(tree.reward[leaf])
        found |= {name: _short(values[leaf]) for name, values in tree.parts.items()}
    else:
        found["fused reward"] = _short(tree.node_reward[node])
    return found


def _short(value: Any) -> float:
    return float(f"{float(value):.4g}")
