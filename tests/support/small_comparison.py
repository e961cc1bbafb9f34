"""A comparison of small runs, shared by the tests of what is run and of what is reported."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from branchgrpo.comparison.budget import Budget
from branchgrpo.comparison.grid import Grid
from branchgrpo.comparison.runs import Comparison
from support.small_trees import QUICKSTART

METHODS = ["branchgrpo-splits", "dancegrpo"]
SMALL = {
    "sampling.steps": "14",
    "rollout.prompts": "1",
    "rollout.threads": "1",
    "reward_workers.threads": "1",
    "learner.threads": "1",
    "evaluation.prompts": "4",
    "evaluation.prompts_between": "2",
    "evaluation.pictures": "1",
    "evaluation.diversity": "2",
    "evaluation.steps": "4",
}


def compared(
    folder: Path,
    methods: Iterable[str] = METHODS,
    seeds: int = 2,
    budget: str = "2",
    grid: Grid | None = None,
    **keys: str,
) -> Comparison:
    overrides = SMALL | {key.replace("__", "."): value for key, value in keys.items()}
    return Comparison(
        base=QUICKSTART,
        methods=list(methods),
        seeds=seeds,
        budget=Budget.parse(budget),
        overrides=overrides,
        folder=folder,
        grid=grid,
    )
