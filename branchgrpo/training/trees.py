"""Pictures of trees at held-out checks."""

from __future__ import annotations

from branchgrpo.rollout.collect import RolloutCollector
from branchgrpo.rollout.trees import grow
from branchgrpo.training.ahead import Ahead
from branchgrpo.training.keeper import TreeKeeper
from branchgrpo.training.state import TrainState


class TreePictures:
    """Grows trees of the run's first prompts, with pictures of what nodes would become: always of
    the same ones, so that they compare."""

    def __init__(self, collector: RolloutCollector, ahead: Ahead, keeper: TreeKeeper | None):
        self.collector, self.ahead, self.keeper = collector, ahead, keeper

    def draw(self, state: TrainState) -> None:
        """Have them kept, as the next iteration would grow them: of `evaluation.trees` prompts."""
        prompts = self.ahead.chosen(0)
        count = min(self.collector.config.evaluation.trees, len(prompts))
        if not (count and self.keeper):
            return
        grown = grow(
            self.collector,
            self.ahead.method,
            iteration=state.iteration,
            version=state.version,
            prompts=prompts[:count],
        )
        # these messages are not the training iteration's
        self.collector.service.driver_bytes()
        note = f"advantages compare {count} of an iteration's {len(prompts)} prompts"
        self.keeper.keep_trees(state.iteration, grown, "" if count == len(prompts) else note)
