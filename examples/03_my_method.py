"""A method of one's own: where trees split, and how nodes are compared.

    python examples/03_my_method.py run.iterations=100
    branchgrpo train --preset branchgrpo-splits --method.name ./examples/03_my_method.py:Roving

A method turns an iteration's number into a plan: for each denoising step the fanout, the kernel and
its noise. An advantage estimator turns leaf rewards into an advantage for every edge. The rest of
the engine knows of neither.
"""

from __future__ import annotations

import sys
from collections import defaultdict

import numpy as np
from pydantic import Field

import branchgrpo as bg
from branchgrpo.algo.advantage.base import AdvantageOptions
from branchgrpo.algo.advantage.fusion import fuse
from branchgrpo.algo.methods.base import MethodOptions
from branchgrpo.algo.schedule import Schedule
from branchgrpo.algo.tree import topology
from branchgrpo.types import BranchPlan, TreeCredit, TreeHeader


class Roving(MethodOptions):
    """Trees that split at other steps in every iteration, and are random there alone: what differs
    between two leaves is what is trained."""

    splits: int = Field(4, ge=1, description="steps at which every node splits")
    fanout: int = Field(2, ge=2, description="children of a node at a split")

    def check(self, steps: int) -> None:
        """Raise ValueError when it doesn't fit a schedule of so many steps."""
        super().check(steps)
        if self.splits > steps - 1:
            raise ValueError(f"splits: expected at most {steps - 1}, got {self.splits}")

    def full_plan(self, iteration: int, schedule: Schedule, seed: int) -> BranchPlan:
        """A pure function of its arguments: every process makes the same plan."""
        draw = np.random.default_rng((seed, iteration))
        # the last step is deterministic: its noise could not reach the picture
        chosen = set(draw.choice(schedule.steps - 1, self.splits, replace=False).tolist())
        steps = range(schedule.steps)
        return BranchPlan(
            sigmas=schedule.levels,
            fanout=tuple(self.fanout if step in chosen else 1 for step in steps),
            kernel=tuple(self.kernel if step in chosen else "ode" for step in steps),
            noise_scale=tuple(self.eta if step in chosen else 0.0 for step in steps),
            branch_noise="independent",
        )


class Ranks(AdvantageOptions):
    """An edge's advantage is the rank of its node among those of its depth in the prompt's trees,
    −1 … 1: outliers count for no more than the best."""

    def credit(self, plan: BranchPlan, trees: list[TreeHeader]) -> list[TreeCredit]:
        """Credit of each tree, in order."""
        topo = topology(plan)
        fused = [fuse(topo, tree.leaf_reward, tree.log_prob, 0.0) for tree in trees]
        reward = np.stack([nodes for nodes, _ in fused])  # [trees, N]
        advantage = np.zeros_like(reward)
        groups: dict[int, list[int]] = defaultdict(list)
        for index, tree in enumerate(trees):
            groups[tree.prompt_index].append(index)
        for members in groups.values():
            for level in range(1, plan.steps + 1):
                rows = np.ix_(members, topo.level(level))
                values = reward[rows]
                below = (values[..., None, None] > values).sum((-2, -1))
                above = (values[..., None, None] < values).sum((-2, -1))
                advantage[rows] = (below - above) / max(1, values.size - 1)
        return [
            TreeCredit(nodes, row, topo.stochastic.copy(), entropy)
            for nodes, row, (_, entropy) in zip(reward, advantage, fused, strict=True)
        ]


def main() -> None:
    overrides = dict(argument.split("=", 1) for argument in sys.argv[1:])
    own = {"method.name": f"{__file__}:Roving", "advantage.name": f"{__file__}:Ranks"}
    # a preset whose loss trains edges: the quick start's own trains leaves
    config = bg.load_config("quickstart", preset="branchgrpo-splits", overrides=own | overrides)
    for iteration in range(3):
        plan = config.method.plan(iteration, config.schedule(), config.run.seed)
        print(f"iteration {iteration}: splits at {plan.splits}, {topology(plan).leaves} leaves")
    result = bg.train(config)
    for name, score in result.summary["held_out"].items():
        print(f"{name}: {score['before']:.3f} → {score['after']:.3f}")


if __name__ == "__main__":
    main()
