"""The reward worker: scores decoded leaves."""

from __future__ import annotations

import os

import numpy as np
import torch
from branchgrpo.config import Config
from branchgrpo.types import LeafMedia, RewardScores


class RewardWorker:
    """Plain class; the cluster makes an actor of it."""

    def __init__(self, config: Config, index: int):
        torch.set_num_threads(config.reward_workers.compute_threads)
        self.index = index
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Score by this config from now on; resources stay as they were."""
        role = config.reward_workers
        self.scorers = [(options, options.build(role.compute_threads, role.device)) for options in config.rewards]

    def __repr__(self) -> str:
        return f"reward-{self.index}"

    def ready(self) -> int:
        """The process, once the rewards are loaded."""
        return os.getpid()

    def score(self, media: LeafMedia, prompts: list[str]) -> RewardScores:
        """Scores of all leaves; `prompts` holds one text for each of the media's subtrees.

        total = Σ weight · trained score. A leaf is `ok` when its total is finite.
        """
        each = len(media.pixels) // len(media.subtrees)
        texts = [prompt for prompt in prompts for _ in range(each)]
        total, parts = np.zeros(len(texts), np.float32), {}
        for options, scorer in self.scorers:
            scores = scorer.score(media.pixels, texts)
            total += np.float32(options.weight) * scores[scorer.trains_on]
            parts |= {f"{options.name}/{score}": scores[score] for score in scorer.reports}
        return RewardScores(total, parts, np.isfinite(total))
