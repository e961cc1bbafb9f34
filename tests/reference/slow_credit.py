"""Advantages of a tree of node objects, by loops over its nodes: slow, and obviously right."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, sqrt

from tests.reference.node_tree import Node

Tree = tuple[list[Node], dict[int, float]]
"""(nodes by number, reward of each leaf by its number)."""


def mean_reward(node: Node, rewards: dict[int, float]) -> float:
    """Of the leaves below a node."""
    below = [rewards[leaf.number] for leaf in node.leaves()]
    return sum(below) / len(below)


def random_children(node: Node) -> list[Node]:
    """Children by random edges; nodes of a regular tree have `random` set, too."""
    return [child for child in node.children if child.random]


def sibling_differences(tree: Tree) -> dict[int, float]:
    """By node number, of random edges alone: mean reward less the mean over all siblings."""
    nodes, rewards = tree
    found = {}
    for parent in nodes:
        values = {child.number: mean_reward(child, rewards) for child in random_children(parent)}
        for number, value in values.items():
            found[number] = value - sum(values.values()) / len(values)
    return found


def sibling_advantages(trees: Sequence[Tree]) -> list[dict[int, float]]:
    """Of the trees of one prompt: differences over the root of their mean square at each depth,
    where a parent with k random children counts k − 1."""
    apart = [sibling_differences(tree) for tree in trees]
    found: list[dict[int, float]] = [{} for _ in trees]
    for step in range(max(node.step for node in trees[0][0]) + 1):
        squares, freedom = 0.0, 0
        for (nodes, _), differences in zip(trees, apart, strict=True):
            for parent in nodes:
                children = [child for child in random_children(parent) if child.step == step]
                squares += sum(differences[child.number] ** 2 for child in children)
                freedom += max(0, len(children) - 1)
        for (nodes, _), differences, advantage in zip(trees, apart, found, strict=True):
            for node in nodes:
                if node.random and node.step == step:
                    spread = sqrt(squares / freedom) if freedom else 1.0
                    advantage[node.number] = differences[node.number] / spread
    return found


def backed_up(
    trees: Sequence[Tree], log_prob: Sequence[dict[int, float]]
) -> list[dict[int, float]]:
    """Of the trees of one prompt: leaves' rewards standardised by all of them, and from the bottom
    up of each node the mean of its children, weighted by the probability of the edges into them."""
    leaves = [reward for _, rewards in trees for reward in rewards.values()]
    mean = sum(leaves) / len(leaves)
    spread = sqrt(sum((one - mean) ** 2 for one in leaves) / (len(leaves) - 1))

    def value(node: Node, rewards: dict[int, float], likely: dict[int, float]) -> float:
        if not node.children:
            return (rewards[node.number] - mean) / spread
        odds = [exp(likely[child.number]) for child in node.children]
        values = [value(child, rewards, likely) for child in node.children]
        return sum(odd * one for odd, one in zip(odds, values, strict=True)) / sum(odds)

    return [
        {node.number: value(node, rewards, likely) for node in nodes}
        for (nodes, rewards), likely in zip(trees, log_prob, strict=True)
    ]
