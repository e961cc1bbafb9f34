"""Growing an iteration's trees in two passes: many candidates cheaply, then the best and the worst
of them in full, from the same noise."""

from __future__ import annotations

from collections import defaultdict
from functools import partial

import numpy as np

from branchgrpo.algo.credit import Scores
from branchgrpo.algo.scouts import best_and_worst, rank_correlation
from branchgrpo.config.schema import Config
from branchgrpo.rollout.batch import RolloutBatch, Scouted
from branchgrpo.rollout.collect import RolloutCollector
from branchgrpo.rollout.texts import EncodedTexts
from branchgrpo.types import BranchPlan, Sample


def collect(
    config: Config,
    collector: RolloutCollector,
    plan: BranchPlan,
    scouting: BranchPlan | None,
    *,
    iteration: int,
    version: int,
    prompts: list[int],
    samples: list[Sample],
    encoded: EncodedTexts | None,
    viewed: bool = False,
) -> RolloutBatch:
    """An iteration's trees, `rollout.trees_per_prompt` · `plan.chains` of each prompt. scouting:
    the plan of candidates, of which there are that many times its `chains`; None: all that are
    grown are trained on. Other arguments as of RolloutCollector.collect.

    A tree's noise is keyed by its number, which a candidate keeps: what is grown again is what the
    plan would have grown under that number in a run with as many chains as there are candidates.
    """
    each = config.rollout.trees_per_prompt
    grow = partial(
        collector.collect,
        iteration=iteration,
        version=version,
        prompts=prompts,
        samples=samples,
        encoded=encoded or collector.encode(samples),
    )
    if scouting is None:
        return grow(plan, trees=each * plan.chains, viewed=viewed)
    scouts = grow(scouting, trees=each * scouting.chains, trained=False)
    told = _by_prompt(config, scouts.scores)
    count = each * plan.chains
    # none of a prompt whose candidates lack a reward
    numbers = [
        best_and_worst(told[row], count) if row in told else [] for row in range(len(prompts))
    ]
    batch = grow(plan, trees=numbers, viewed=viewed)
    _add(batch, scouts)
    found = _by_prompt(config, batch.scores)
    batch.scouted = Scouted(
        reward=float(scouts.total().mean()),
        forwards=scouts.forwards,
        halved=scouts.halved,
        agreement=float(
            np.mean(
                [
                    rank_correlation([told[row][tree] for tree in of], list(of.values()))
                    for row, of in found.items()
                ]
            )
        ),
    )
    return batch


def _by_prompt(config: Config, scores: Scores) -> dict[int, dict[int, float]]:
    """Prompt index → tree → its mean leaf reward as trees are compared by it."""
    found: dict[int, dict[int, float]] = defaultdict(dict)
    for (row, tree), rewards in config.credit.leaf_rewards(scores).items():
        found[row][tree] = float(rewards.mean())
    return dict(found)


def _add(batch: RolloutBatch, scouts: RolloutBatch) -> None:
    """What the scouts took, to what the batch took."""
    batch.retries += scouts.retries
    batch.dropped = scouts.dropped | batch.dropped
    for phase, seconds in scouts.seconds.items():
        batch.seconds[phase] += seconds
    batch.seconds["scout"] = scouts.seconds["grow"] + scouts.seconds["score"]
