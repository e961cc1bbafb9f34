"""The held-out check: pictures of prompts that training never sees, always from the same noise."""

from __future__ import annotations

import numpy as np

from branchgrpo.algo.plan import ode_plan
from branchgrpo.config.schema import Config
from branchgrpo.data import prompts
from branchgrpo.rollout.batch import RolloutBatch
from branchgrpo.rollout.collect import RolloutCollector
from branchgrpo.rollout.texts import EncodedTexts
from branchgrpo.service import Service
from branchgrpo.types import EVALUATION, F32, U8, Sample

PICTURES = 4
"""Pictures of a prompt whose distances are measured."""

Scores = dict[str, F32]
"""Scores [P] of held-out prompts: `total`, which training maximises, and those reported, by
reward/score."""


class Evaluator:
    """Measures the weights that the rollout workers hold."""

    def __init__(self, config: Config, service: Service, collector: RolloutCollector):
        self.config = config
        self.service = service
        self.collector = collector
        _, self.held_out = prompts.lists(config)
        self.kept: EncodedTexts | None = None  # of the first held-out prompts, from check to check

    def clear(self) -> None:
        """After a fault: what was encoded may be gone."""
        self.kept = None

    def scores(self, version: int, count: int, pictures: int = 0) -> tuple[Scores, U8 | None]:
        """Scores of the first `count` held-out prompts under the ODE sampler and the pixels
        [pictures, F, H, W, 3] of the first ones, with weights of this version."""
        batch, found = self._sample(version, count, 1, pictures)
        scores = {"total": batch.total()} | {name: batch.part(name) for name in batch.parts}
        return scores, np.stack([found[row, 0] for row in range(pictures)]) if pictures else None

    def between(self, scores: Scores) -> dict[str, float]:
        """What the checks on the way would have shown of these scores, as metrics."""
        count = self.config.evaluation.prompts_between
        return {f"held_out/{name}": float(values[:count].mean()) for name, values in scores.items()}

    def diversity(self, version: int) -> F32:
        """[prompts] mean distance between a prompt's pictures: root mean square over pixels, on a
        scale of 0 … 1."""
        count = self.config.evaluation.diversity
        _, found = self._sample(version, count, PICTURES, count)
        return np.array(
            [
                pairwise_distance(np.stack([found[row, tree] for tree in range(PICTURES)]))
                for row in range(count)
            ],
            np.float32,
        )

    def _sample(
        self, version: int, count: int, trees: int, pictures: int
    ) -> tuple[RolloutBatch, dict[tuple[int, int], U8]]:
        """`trees` pictures of each of the first `count` held-out prompts; pixels [F, H, W, 3] of
        the first `pictures` prompts."""
        samples, options = self.held_out[:count], self.config.evaluation
        others = options.weights != self.config.grown_with and version > 0
        if others:
            self.service.publish(options.weights)
        encoded = self._encoded(samples)
        plan = ode_plan(self.config.evaluation_schedule())
        batch = self.collector.collect(
            plan,
            iteration=EVALUATION,
            version=version,
            prompts=list(range(len(samples))),
            samples=samples,
            trees=trees,
            encoded=encoded,
        )
        if encoded.bytes > options.kept_mb << 20:
            self.kept = None
        found: dict[tuple[int, int], U8] = {}
        for subtrees, reference in batch.media:
            if any(subtree.prompt_index < pictures for subtree in subtrees):
                pixels = self.service.rollouts.pixels(reference)
                found |= {
                    (subtree.prompt_index, subtree.key.tree): picture
                    for subtree, picture in zip(subtrees, pixels, strict=True)
                }
        if others:
            self.service.publish(self.config.grown_with)
        self.service.driver_bytes()  # evaluation's messages are not the training iteration's
        return batch, found

    def _encoded(self, samples: list[Sample]) -> EncodedTexts:
        """Encodings that begin with those of the first held-out prompts: an earlier check's, if
        they were kept and are enough."""
        if self.kept is None or len(self.kept.samples) < len(samples):
            self.kept = self.collector.encode(samples, evaluated=True)
        return self.kept


def pairwise_distance(pixels: U8) -> float:
    """Mean over pairs of pictures [n, …] of their root mean square difference, 0 … 1."""
    flat = pixels.reshape(len(pixels), -1).astype(np.float64) / 255.0
    pairs = [
        np.sqrt(np.square(one - other).mean())
        for index, one in enumerate(flat)
        for other in flat[index + 1 :]
    ]
    return float(np.mean(pairs))
