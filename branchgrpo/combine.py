"""Several rewards as one: the weighted sum of scores, or of advantages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from branchgrpo.config import Config
from branchgrpo.types import F32, BranchPlan, TreeCredit, TreeHeader

Scores = Mapping[tuple[int, int], F32]
"""(prompt row, tree) → the trained score of every reward [R, L]."""

_SPREAD = 1e-6  # rewards closer than this carry no signal


def totals(config: Config, scores: Scores) -> dict[tuple[int, int], F32]:
    """Σ weight · score [L] of each tree, on the rewards' own scales: what figures show."""
    weights = np.array([reward.weight for reward in config.rewards], np.float32)
    return {key: weights @ values for key, values in scores.items()}


def leaf_rewards(config: Config, scores: Scores) -> dict[tuple[int, int], F32]:
    """[L] of each tree: what pruning goes by and nodes fuse.

    combine: reward gives `totals`. combine: advantage gives Σ weight · (r − mean)/std with mean and unbiased std over
    all leaves of the prompt, so that no reward counts for more because its scale is wider.
    """
    if config.combine == "reward":
        return totals(config, scores)
    groups: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for key in scores:
        groups[key[0]].append(key)
    weights = np.array([reward.weight for reward in config.rewards], np.float32)
    found: dict[tuple[int, int], F32] = {}
    for keys in groups.values():
        values = np.concatenate([scores[key] for key in keys], 1).astype(np.float64)  # [R, leaves of the prompt]
        spread = values.std(1, ddof=1, keepdims=True) if values.shape[1] > 1 else np.zeros((len(values), 1))
        level = np.where(spread < _SPREAD, 0.0, (values - values.mean(1, keepdims=True)) / np.maximum(spread, _SPREAD))
        parts = np.split((weights @ level).astype(np.float32), np.cumsum([scores[key].shape[1] for key in keys])[:-1])
        found |= dict(zip(keys, parts, strict=True))
    return found


def credit(config: Config, plan: BranchPlan, trees: list[TreeHeader], scores: Scores) -> list[TreeCredit]:
    """Credit of each tree by the config's estimator, whose leaves have `leaf_rewards`.

    combine: advantage asks the estimator once for every reward and sums weight · advantage; node rewards stay those
    of `leaf_rewards`.
    """
    estimator = config.advantage
    credits = estimator.credit(plan, trees)
    if config.combine == "reward":
        return credits
    advantage = np.zeros((len(trees), len(credits[0].advantage)), np.float32)
    for index, reward in enumerate(config.rewards):
        alone = [replace(tree, leaf_reward=scores[tree.prompt, tree.key.tree][index]) for tree in trees]
        advantage += np.float32(reward.weight) * np.stack([one.advantage for one in estimator.credit(plan, alone)])
    return [replace(one, advantage=row) for one, row in zip(credits, advantage, strict=True)]
