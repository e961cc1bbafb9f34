"""The reward worker: scores decoded leaves."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping, Sequence

import numpy as np

from actors.devices import use_threads
from branchgrpo.config.roles import RewardRole
from branchgrpo.config.schema import Config
from branchgrpo.errors import UserError, kind_and_line
from branchgrpo.rewards.base import Resources, RewardOptions, Scorer
from branchgrpo.rewards.http import limits
from branchgrpo.types import F32, U8, Bool, LeafMedia, RewardScores, Sample, ScoreRequest


class BadScores(Exception):
    """A reward gave scores that cannot be used."""


class RewardWorker:
    """Plain class; the cluster makes an actor of it. Scores by some of the config's rewards."""

    def __init__(self, config: Config, rewards: tuple[int, ...], index: int):
        self.config = config
        self.rewards = rewards
        self.index = index

    def ping(self) -> None:
        """Is it alive?"""

    def ready(self) -> None:
        """Load the rewards."""
        self.configure(self.config)

    def configure(self, config: Config) -> None:
        """Score by this config from now on; resources stay as they were."""
        self.config, role = config, config.reward_workers
        use_threads(role.compute_threads)
        resources = Resources(threads=role.compute_threads, device=role.device)
        chosen = [config.all_rewards[index] for index in self.rewards]
        self.scorers = [(options.title, loaded(options, resources, role)) for options in chosen]
        use_threads(role.compute_threads)  # again: of torch that a scorer has loaded

    def __repr__(self) -> str:
        return f"reward-{self.index}"

    def score(self, request: ScoreRequest, *media: LeafMedia) -> RewardScores:
        """Scores of the leaves of `request.subtrees`, in that order.

        A leaf is `ok` when each reward gave it a finite score, at the latest on its last retry. A
        reward that raises fails all leaves; a UserError is not retried but raised.
        """
        pixels = chosen_pixels(request.places, media)
        each = len(pixels) // len(request.places)
        samples = [sample for sample in request.samples for _ in range(each)]
        asked = [self.scorers[self.rewards.index(reward)] for reward in request.rewards]
        trained = np.full((len(asked), len(samples)), np.nan, np.float32)
        parts = dict[str, F32]()
        retries, reason = 0, ""
        for _, scorer in asked:
            limits.check(pixels.shape, request.samples, scorer.max_ratio)
        for row, (title, scorer) in enumerate(asked):
            found, finite, more, why = self._tried(title, scorer, pixels, samples)
            retries, reason = retries + more, why or reason
            if found:
                trained[row] = np.where(finite, found[scorer.trains_on], np.nan)
            parts |= {
                f"{title}/{score}": found.get(score, trained[row]) for score in scorer.reports
            }
        return RewardScores(
            trained=trained,
            parts=parts,
            ok=np.asarray(np.isfinite(trained).all(0)),
            retries=retries,
            reason=reason,
        )

    def features(self, request: ScoreRequest, *media: LeafMedia) -> dict[str, F32]:
        """Features [L, D] of the leaves of `request.subtrees`, in that order, by reward. Raises
        RuntimeError for features that are not finite."""
        pixels = chosen_pixels(request.places, media)
        found = dict[str, F32]()
        for reward in request.rewards:
            title, scorer = self.scorers[self.rewards.index(reward)]
            limits.check(pixels.shape, request.samples, scorer.max_ratio)
            found[title] = np.asarray(scorer.features(pixels), np.float32)
            if found[title].shape[:1] != (len(pixels),) or not np.isfinite(found[title]).all():
                raise RuntimeError(
                    f"{title}: expected {len(pixels)} rows of finite features, got an array "
                    f"{found[title].shape} with {int((~np.isfinite(found[title])).sum())} others"
                )
        return found

    def _tried(
        self, title: str, scorer: Scorer, pixels: U8, samples: list[Sample]
    ) -> tuple[dict[str, F32], Bool, int, str]:
        """Scores, none where the reward raised; where all that count are finite; how many tries
        came after the first; and why the last that failed did."""
        found, finite = dict[str, F32](), np.zeros(len(samples), bool)
        reason, retries = "", 0
        for attempt in range(self.config.reward_workers.retries + 1):
            retries = attempt
            try:
                found = checked(scorer, scorer.score(pixels, samples), len(samples))
                finite = np.all(
                    [np.isfinite(found[name]) for name in {scorer.trains_on, *scorer.reports}], 0
                )
                if finite.all():
                    break
                reason = f"{title}: {int((~finite).sum())} of {len(samples)} scores are not finite"
            except UserError:
                raise
            # whatever a reward fails of, its policy decides; the reason travels
            except Exception as error:
                found = {}
                reason = f"{title}: {kind_and_line(error)}"
                traceback.print_exc(file=sys.stderr)
        return found, finite, retries, reason


def chosen_pixels(places: Sequence[tuple[int, int]], media: Sequence[LeafMedia]) -> U8:
    """Pixels [l*n, F, H, W, 3] of n subtrees: of each, which LeafMedia and which subtree of it. No
    copy where they are all of one in its own order."""
    if len(media) == 1 and list(places) == [(0, row) for row in range(len(media[0].subtrees))]:
        return media[0].pixels
    parts = []
    for index, row in places:
        one = media[index]
        each = len(one.pixels) // len(one.subtrees)
        parts.append(one.pixels[row * each : (row + 1) * each])
    return np.concatenate(parts)


def loaded(options: RewardOptions, resources: Resources, role: RewardRole) -> Scorer:
    """The scorer of a reward; with reward_workers.offload one that leaves the device between its
    calls."""
    scorer = options.build(resources)
    if role.offload and resources.device != "cpu":
        from branchgrpo.rewards.offloaded import OffloadedScorer  # it loads torch

        return OffloadedScorer(scorer, resources.device)
    return scorer


def checked(scorer: Scorer, scores: Mapping[str, F32], count: int) -> dict[str, F32]:
    """The scores as float32. Raises BadScores unless all that the scorer promised are there,
    `count` each."""
    for name in {scorer.trains_on, *scorer.reports}:
        got = np.shape(scores[name]) if name in scores else "none"
        if got != (count,):
            raise BadScores(f"expected {count} scores named {name}, got {got}")
    return {name: np.asarray(values, np.float32) for name, values in scores.items()}
