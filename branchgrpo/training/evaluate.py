"""The held-out check: pictures of prompts that training never sees, always from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from branchgrpo.algo.plan import ode_plan
from branchgrpo.config.schema import Config
from branchgrpo.data import prompts
from branchgrpo.rollout.batch import RolloutBatch
from branchgrpo.rollout.collect import RolloutCollector
from branchgrpo.rollout.texts import EncodedTexts
from branchgrpo.service import Service
from branchgrpo.training.diversity import (
    LATENTS,
    PIXELS,
    Diversity,
    cosine_distance,
    pixel_distance,
)
from branchgrpo.types import EVALUATION, F32, U8, Sample

PICTURES = 4
"""Pictures of a prompt whose distances are measured."""

Key = tuple[int, int]
"""Prompt index, tree."""

Scores = dict[str, F32]
"""Scores [P] of held-out prompts: `total`, which training maximises, and those reported, by
reward/score."""


Save = Callable[[int, U8], None]
"""Takes the picture [F, H, W, 3] of the held-out prompt at this place."""


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

    def scores(
        self, version: int, count: int, pictures: int = 0, save: Save | None = None
    ) -> tuple[Scores, U8 | None]:
        """Scores of the first `count` held-out prompts under the ODE sampler and the pixels
        [pictures, F, H, W, 3] of the first ones, with weights of this version. save: gets the first
        `evaluation.save` pictures, one after another: the driver does not hold them all."""
        batch = self._collected(version, count, 1)
        scores = {"total": batch.total()} | {name: batch.part(name) for name in batch.parts}
        found = self._pixels(batch, pictures, save)
        return scores, np.stack([found[row, 0] for row in range(pictures)]) if pictures else None

    def between(self, scores: Scores) -> dict[str, float]:
        """What the checks on the way would have shown of these scores, as metrics."""
        count = self.config.evaluation.prompts_between
        return {f"held_out/{name}": float(values[:count].mean()) for name, values in scores.items()}

    def diversity(self, version: int) -> Diversity:
        """How far apart pictures of one prompt are: four each of the first `evaluation.diversity`
        prompts, with weights of this version."""
        rows = range(self.config.evaluation.diversity)
        batch = self._collected(version, len(rows), PICTURES, compared=True)

        def each(table: Mapping[Key, Any], distance: Callable[[Any], float]) -> F32:
            groups = ([table[row, tree] for tree in range(PICTURES)] for row in rows)
            return np.array([distance(np.stack(group)) for group in groups], np.float32)

        found = {
            PIXELS: each(self._pixels(batch), pixel_distance),
            LATENTS: each(self._latents(batch), cosine_distance),
        }
        return found | {
            name: each(table, cosine_distance) for name, table in batch.features.items()
        }

    def _collected(
        self, version: int, count: int, trees: int, compared: bool = False
    ) -> RolloutBatch:
        """`trees` pictures of each of the first `count` held-out prompts."""
        samples, options = self.held_out[:count], self.config.evaluation
        others = options.weights != self.config.grown_with and version > 0
        if others:
            self.service.publish(options.weights)
        encoded = self._encoded(samples)
        batch = self.collector.collect(
            ode_plan(self.config.evaluation_schedule()),
            iteration=EVALUATION,
            version=version,
            prompts=list(range(len(samples))),
            samples=samples,
            trees=trees,
            encoded=encoded,
            compared=compared,
        )
        if encoded.bytes > options.kept_mb << 20:
            self.kept = None
        if others:
            self.service.publish(self.config.grown_with)
        self.service.driver_bytes()  # evaluation's messages are not the training iteration's
        return batch

    def _pixels(
        self, batch: RolloutBatch, prompts: int | None = None, save: Save | None = None
    ) -> dict[Key, U8]:
        """Pixels [F, H, W, 3] of the first so many prompts, or of all, by (prompt, tree). save: see
        `scores`."""
        found: dict[Key, U8] = {}
        saved = self.config.evaluation.save if save else 0
        wanted = len(self.held_out) if prompts is None else prompts
        for subtrees, reference in batch.media:
            rows = [subtree.prompt_index for subtree in subtrees]
            if min(rows) >= max(wanted, saved):
                continue
            for subtree, picture in zip(
                subtrees, self.service.rollouts.pixels(reference), strict=True
            ):
                row = subtree.prompt_index
                if save and row < saved:
                    save(row, picture)
                if row < wanted:
                    found[row, subtree.key.tree] = picture
        return found

    def _latents(self, batch: RolloutBatch) -> dict[Key, F32]:
        """Clean latents of the leaves, by (prompt, tree)."""
        found: dict[Key, F32] = {}
        for header, reference in batch.segments:
            payload = self.service.rollouts.payload(reference)
            found |= {
                (header.subtrees[row].prompt_index, header.subtrees[row].key.tree): latents
                for row, latents in zip(
                    payload.subtree.tolist(), payload.float_latents(), strict=True
                )
            }
        return found

    def _encoded(self, samples: list[Sample]) -> EncodedTexts:
        """Encodings that begin with those of the first held-out prompts: an earlier check's, if
        they were kept and are enough."""
        if self.kept is None or len(self.kept.samples) < len(samples):
            self.kept = self.collector.encode(samples, evaluated=True)
        return self.kept
