"""Trees to be looked at: what was grown, with the credit that an update would give it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from branchgrpo.algo.methods.base import MethodRun
from branchgrpo.algo.tree import Topology, assemble, topology
from branchgrpo.data import prompts as prompt_lists
from branchgrpo.rollout import scouts
from branchgrpo.rollout.batch import RolloutBatch
from branchgrpo.rollout.collect import RolloutCollector
from branchgrpo.types import F32, U8, Bool, BranchPlan, Sample, TreeKey


@dataclass(frozen=True, kw_only=True)
class GrownTree:
    """A tree of N nodes and L leaves."""

    key: TreeKey
    sample: Sample
    plan: BranchPlan
    log_prob: F32  # [N] of the edge into each node, 0 for deterministic ones
    advantage: F32  # [N] of that edge
    kept: Bool  # [N] it is trained: the edge, or with a loss on leaves the leaf
    node_reward: F32  # [N] what the estimator makes of the leaves below
    reward: F32  # [L] what training maximises
    parts: Mapping[str, F32]  # reward/score → [L]
    # node → [H, W, 3]: leaves, and the x̂0 of those that split; of a video the frame in its middle
    pixels: Mapping[int, U8]
    trained: str  # "edges" or "leaves"

    @property
    def topology(self) -> Topology:
        """Its arrays."""
        return topology(self.plan)


def grow(
    collector: RolloutCollector,
    method: MethodRun,
    *,
    iteration: int,
    version: int,
    prompts: list[int],
) -> list[GrownTree]:
    """The trees of an iteration for these prompts, indices in the list, by (prompt, tree): noise is
    keyed, so that with the same weights they are those that the iteration trains on.

    Advantages compare what is grown here: where the estimator compares prompts, they are those of
    the iteration only if all its prompts are given.
    """
    config = collector.config
    schedule = config.schedule()
    plan = config.plan(method, iteration, schedule)
    known, _ = prompt_lists.lists(config)
    samples = [known[index] for index in prompts]
    batch = scouts.collect(
        config,
        collector,
        plan,
        method.scouting(schedule),
        iteration=iteration,
        version=version,
        prompts=prompts,
        samples=samples,
        encoded=None,
        viewed=True,
    )
    credit = config.credit
    headers = assemble(
        plan, [header for header, _ in batch.segments], credit.leaf_rewards(batch.scores)
    )
    credits = credit.assign(plan, headers, iteration, batch.scores)
    pixels = _pixels(collector, plan, batch)
    return [
        GrownTree(
            key=header.key,
            sample=samples[header.prompt_index],
            plan=plan,
            log_prob=header.log_prob,
            advantage=own.advantage,
            kept=own.keep,
            node_reward=own.node_reward,
            reward=batch.rewards[header.prompt_index, header.key.tree],
            parts={
                name: part[header.prompt_index, header.key.tree]
                for name, part in batch.parts.items()
            },
            pixels=pixels[header.key],
            trained=credit.trained,
        )
        for header, own in zip(headers, credits, strict=True)
    ]


def _pixels(
    collector: RolloutCollector, plan: BranchPlan, batch: RolloutBatch
) -> dict[TreeKey, dict[int, U8]]:
    """Pictures by tree and node."""
    rollouts, topo = collector.service.rollouts, topology(plan)
    found: dict[TreeKey, dict[int, U8]] = defaultdict(dict)
    for reference in batch.views:
        views = rollouts.views(reference)
        for key, node, pixels in zip(views.keys, views.node.tolist(), views.pixels, strict=True):
            found[key][node] = pixels
    for subtrees, reference in batch.media:
        drawn = rollouts.pixels(reference)
        middle = drawn[:, drawn.shape[1] // 2]
        each = len(middle) // len(subtrees)
        for index, subtree in enumerate(subtrees):
            nodes = topo.below(subtree.node, plan.steps).tolist()
            rows = middle[index * each : (index + 1) * each]
            found[subtree.key] |= dict(zip(nodes, rows, strict=True))
    return found
