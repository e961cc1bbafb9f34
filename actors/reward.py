"""The reward worker: scores decoded leaves."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping

import numpy as np

from actors.devices import use_threads
from branchgrpo.config.roles import RewardRole
from branchgrpo.config.schema import Config
from branchgrpo.errors import UserError, kind_and_line
from branchgrpo.rewards.base import Resources, RewardOptions, Scorer
from branchgrpo.rewards.http import limits
from branchgrpo.types import F32, LeafMedia, RewardScores


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
        chosen = [config.rewards[index] for index in self.rewards]
        self.scorers = [(options.title, loaded(options, resources, role)) for options in chosen]
        use_threads(role.compute_threads)  # again: of torch that a scorer has loaded

    def __repr__(self) -> str:
        return f"reward-{self.index}"

    def score(self, media: LeafMedia, prompts: list[str]) -> RewardScores:
        """Scores of all leaves; `prompts` holds one text for each of the media's subtrees.

        A leaf is `ok` when each reward gave it a finite score, at the latest on its last retry. A
        reward that raises fails all leaves; a UserError is not retried but raised.
        """
        each = len(media.pixels) // len(media.subtrees)
        texts = [prompt for prompt in prompts for _ in range(each)]
        trained = np.full((len(self.scorers), len(texts)), np.nan, np.float32)
        parts = dict[str, F32]()
        retries, reason = 0, ""
        for _, scorer in self.scorers:
            limits.check(media.pixels.shape, prompts, scorer.max_ratio)
        for row, (title, scorer) in enumerate(self.scorers):
            found: Mapping[str, F32] = {}
            for attempt in range(self.config.reward_workers.retries + 1):
                retries += attempt > 0
                try:
                    found = checked(scorer, scorer.score(media.pixels, texts), len(texts))
                    finite = np.all(
                        [np.isfinite(found[name]) for name in {scorer.trains_on, *scorer.reports}],
                        0,
                    )
                    if finite.all():
                        break
                    reason = (
                        f"{title}: {int((~finite).sum())} of {len(texts)} scores are not finite"
                    )
                except UserError:
                    raise
                # whatever a reward fails of, its policy decides; the reason travels
                except Exception as error:
                    found = {}
                    reason = f"{title}: {kind_and_line(error)}"
                    traceback.print_exc(file=sys.stderr)
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
