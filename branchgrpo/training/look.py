"""What is looked at on the way: a held-out check's scores by prompt, and the trees that an
iteration trained on, of which a few leaves are shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from branchgrpo.algo.credit import Credit
from branchgrpo.algo.tree import assemble, topology
from branchgrpo.report.looks import histogram, standard_error
from branchgrpo.rollout.batch import RolloutBatch
from branchgrpo.service import RolloutPool
from branchgrpo.types import F32, U8, BranchPlan, Sample

SHOWN = 4
"""Leaves that are shown of the best, and of the worst."""

Name = tuple[int, int, int]
"""Of a leaf: prompt index, tree, leaf."""


def of_check(scores: Mapping[str, F32], count: int, alarms: Mapping[str, str]) -> dict[str, Any]:
    """Of the first `count` held-out prompts' scores [P]: means and standard errors over prompts.
    alarms: what is wrong, in words, by the figure that says so."""
    return {
        "prompts": min(count, len(scores["total"])),
        "held_out": {name: standard_error(values[:count]) for name, values in scores.items()},
        "alarms": dict(alarms),
    }


def magnitudes(
    plan: BranchPlan, batch: RolloutBatch, credit: Credit, iteration: int
) -> dict[int, F32]:
    """|advantage| of all that is trained, by the step of its edge, rising; of losses on leaves
    there is one step, the last."""
    rewards = credit.leaf_rewards(batch.scores)
    trees = assemble(plan, [header for header, _ in batch.segments], rewards)
    found = credit.assign(plan, trees, iteration, batch.scores)
    steps = topology(plan).step
    kept = np.concatenate([steps[one.keep] for one in found])
    values = np.concatenate([np.abs(one.advantage[one.keep]) for one in found])
    return {int(step): values[kept == step] for step in np.unique(kept)}


def of_batch(
    plan: BranchPlan, batch: RolloutBatch, credit: Credit, iteration: int
) -> tuple[dict[str, F32], dict[str, Any]]:
    """What is drawn as histograms: by name, the values themselves; and a line of looks.jsonl.
    iteration: of the trees, from 0."""
    steps = magnitudes(plan, batch, credit, iteration)
    rewards = batch.leaf_rewards().ravel()
    values = {"reward/leaves": rewards}
    values |= {f"advantage/depth{depth}": one for depth, one in enumerate(steps.values())}
    line = {
        "rewards": histogram(rewards),
        "advantage": [{"step": step, **histogram(one, 0.0)} for step, one in steps.items()],
        "flat_groups": credit.flat_groups(batch.scores),
    }
    return values, line


def best_and_worst(batch: RolloutBatch, count: int = SHOWN) -> tuple[list[Name], list[Name]]:
    """So many leaves of the highest rewards, and of the lowest, of as many prompts as there are:
    none has a second one before each has its first. Equal ones by their names."""
    names = [(*key, leaf) for key, values in batch.rewards.items() for leaf in range(len(values))]
    rewards = np.concatenate([np.asarray(values, np.float64) for values in batch.rewards.values()])
    order = np.argsort(-rewards, kind="stable")
    half = min(count, len(names) // 2)
    return _spread([names[place] for place in order], half), _spread(
        [names[place] for place in order[::-1]], half
    )


def _spread(ordered: list[Name], count: int) -> list[Name]:
    """The first ones, of as many prompts as possible."""
    seen = Counter[int]()
    round_of = []
    for name in ordered:
        round_of.append(seen[name[0]])
        seen[name[0]] += 1
    chosen = sorted(range(len(ordered)), key=lambda place: (round_of[place], place))[:count]
    return [ordered[place] for place in sorted(chosen)]


def lines(
    batch: RolloutBatch, samples: Sequence[Sample], chosen: Sequence[Name]
) -> list[dict[str, Any]]:
    """Of each of these leaves: its prompt, where it is, its reward and the parts of that."""
    return [
        {
            "prompt": samples[row].prompt,
            "prompt_index": row,
            "tree": tree,
            "leaf": leaf,
            "reward": float(batch.rewards[row, tree][leaf]),
            "parts": {name: float(part[row, tree][leaf]) for name, part in batch.parts.items()},
        }
        for row, tree, leaf in chosen
    ]


def pictures(
    rollouts: RolloutPool, plan: BranchPlan, batch: RolloutBatch, chosen: Sequence[Name]
) -> U8:
    """[n, F, H, W, 3] of these leaves, of videos a few frames."""
    topo, found, tasks = topology(plan), dict[Name, U8](), rollouts.tasks()

    def keep(names: Sequence[Name], pixels: U8) -> None:
        found.update(zip(names, pixels, strict=True))

    for subtrees, reference in batch.media:
        places: dict[Name, int] = {}
        first = 0
        for subtree in subtrees:
            own = int(topo.leaf_count[subtree.node])
            name = subtree.prompt_index, subtree.key.tree
            begin = int(topo.leaf_first[subtree.node])
            places |= {(*name, begin + one): first + one for one in range(own)}
            first += own
        if wanted := [name for name in chosen if name in places]:
            rows = [places[name] for name in wanted]
            rollouts.some(tasks, reference, rows, partial(keep, wanted))
    tasks.run()
    return np.stack([found[name] for name in chosen])
