"""From scored trees to the credit of every edge: estimator, then pruning."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from branchgrpo import combine
from branchgrpo.config import Config
from branchgrpo.types import BranchPlan, TreeCredit, TreeHeader


def assign(config: Config, plan: BranchPlan, trees: list[TreeHeader], iteration: int, scores: combine.Scores) -> list[TreeCredit]:
    """Credit of each tree, in order; its leaves have combine.leaf_rewards of `scores`. Advantages always see the whole tree; pruning only clears `keep`."""
    credits = combine.credit(config, plan, trees, scores)
    for rule in config.pruning:
        masks = rule.keep(plan, trees, iteration, config.run.seed)
        credits = [replace(credit, keep=credit.keep & mask) for credit, mask in zip(credits, masks, strict=True)]
    return credits


def digest(credits: list[TreeCredit]) -> str:
    """sha256 of all credit; ranks compare it before they train."""
    found = hashlib.sha256()
    for credit in credits:
        for array in (credit.node_reward, credit.advantage, credit.keep):
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
