"""Pictures of a run's weights, drawn in this process, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from branchgrpo.algo.plan import ode_plan
from branchgrpo.models.weights import dtype_named
from branchgrpo.rewards.function import images
from branchgrpo.rollout.sampler import Sampler
from branchgrpo.runs.measured import Target, put_together
from branchgrpo.types import EVALUATION, U8, Sample, Subtree, TreeKey


class Drawing:
    """A run's trained model, loaded once: on a GPU where there is one."""

    def __init__(self, target: Target):
        """target: the weights, see branchgrpo.runs.measured."""
        self.config = target.config
        with TemporaryDirectory(prefix="branchgrpo-") as place:
            model = put_together(target, Path(place).resolve()).evaluated
            self.model = model.build("cuda" if torch.cuda.is_available() else "cpu")

    def pixels(
        self, samples: Sequence[Sample], count: int, seed: int, steps: int, *, first: int = 0
    ) -> U8:
        """Pictures u8 [P, count, F, H, W, 3] of P records, by the held-out check's ODE sampler:
        with the run's seed, the first held-out prompts give its very pictures.

        steps: of denoising; 0 = those of the held-out check. first: the first record's place among
        all that are drawn, by which their noise is told apart.
        """
        config = self.config
        subtrees = tuple(
            Subtree(TreeKey("drawing", EVALUATION, first + row, tree), row, 0)
            for row in range(len(samples))
            for tree in range(count)
        )
        sampler = Sampler(
            model=self.model,
            seed=seed,
            storage=dtype_named(config.rollout.storage_dtype),
            max_batch=config.rollout.max_batch,
        )
        plan = ode_plan(config.evaluation_schedule(steps))
        with torch.no_grad():
            segment = sampler.grow(
                plan,
                subtrees=subtrees,
                x=sampler.roots(plan, subtrees),
                start=0,
                stop=plan.steps,
                conditioning=self.model.encode(list(samples)),
            )
            drawn = self.model.decode(segment.frontier.float())
        return np.ascontiguousarray(drawn).reshape(len(samples), count, *drawn.shape[1:])

    def pictures(self, samples: Sequence[Sample], count: int, seed: int, steps: int) -> list[Any]:
        """The same as PIL images, of videos as lists of their frames; prompt by prompt."""
        found = self.pixels(samples, count, seed, steps)
        return images(found.reshape(-1, *found.shape[2:]))
