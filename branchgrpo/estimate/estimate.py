"""All that can be told of a config before anything is loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from branchgrpo.algo.schedule import static
from branchgrpo.config.schema import Config
from branchgrpo.estimate import memory, placing, seconds
from branchgrpo.estimate.cards import Card
from branchgrpo.estimate.iteration import Counts, counts
from branchgrpo.estimate.memory import Need
from branchgrpo.estimate.model import BYTES, ModelNeeds, model_needs


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run needs. Sizes in bytes."""

    model: ModelNeeds | None  # None: the family does not say
    sizes_of: str  # whose published sizes these are; empty: the model's own
    needs: list[Need]
    counts: Counts
    cards: int  # GPUs that the roles take together
    card: Card | None
    times: seconds.Times | None  # where a card is known and all GPU roles are on it
    sent: dict[str, float]  # bytes through the object store in an iteration, by what
    unknown: list[str]  # rewards that do not say what they need
    problems: list[str]  # what cannot run
    notes: list[str]  # what will run otherwise than configured

    @property
    def rollout_flops(self) -> float:
        """Of an iteration, without rewards."""
        if not self.model:
            return 0.0
        grown, pictures = self.counts.grown, self.counts.pictures
        return grown * self.model.forward.flops + pictures * self.model.decode.flops

    @property
    def update_flops(self) -> float:
        """Of an iteration, with what is computed twice."""
        if not self.model:
            return 0.0
        trained, compared = self.counts.trained, self.counts.compared
        return trained * self.model.training.flops + compared * self.model.forward.flops

    def listing(self) -> dict[str, Any]:
        """As --json prints it."""
        found = asdict(self)
        for need, plain in zip(self.needs, found["needs"], strict=True):
            plain |= {"peak": need.peak, "smallest": need.smallest, "process": need.process}
        return found | {"rollout_flops": self.rollout_flops, "update_flops": self.update_flops}


def estimate(config: Config, card: Card | None = None) -> Estimate:
    """Of a config, on this card. Reads config files of the model alone, no weights. Raises
    UserError where they are missing and the model is none whose published sizes are known."""
    return of_model(config, model_needs(config), card)


def of_model(config: Config, model: ModelNeeds | None, card: Card | None = None) -> Estimate:
    """`estimate` of a config whose model is counted already: `model_needs` of its options."""
    shared = seconds.in_turns(config)
    least = config.rollout.begun
    growers = least + (config.learner.ranks if shared else 0)
    work = _counts(config, growers)
    frames = config.model.frames_drawn
    needs = memory.rewards(config, frames)
    if model:
        needs = [memory.learner(config, model, shared), *needs]
        if least:
            needs = [memory.rollout(config, model, least), *needs]
    cards = placing.cards_wanted(needs)
    prints = [reward.footprint(frames) for reward in config.rewards]
    times = None
    if model and card and config.learner.gpus and (config.rollout.gpus or not least):
        times = seconds.times(
            config,
            work,
            model,
            scoring=sum(one.flops for one in prints if one),
            workers=least,
            cards=cards,
            card=card,
        )
    return Estimate(
        model=model,
        sizes_of=config.model.sizes_of,
        needs=needs,
        counts=work,
        cards=cards,
        card=card,
        times=times,
        sent=_sent(config, work, model, least) if model else {},
        unknown=[reward.title for reward in config.all_rewards if not reward.footprint(frames)],
        problems=placing.problems(config, needs, card),
        notes=placing.notes(config, needs, card),
    )


def _counts(config: Config, growers: int) -> Counts:
    """By the levels of the model's own schedule where they say what trains. Else they matter to
    none of the counts: splits and windows depend on the number of steps alone."""
    config = config.model_copy(update={"model": config.model.at_sizes()})
    frozen = config.model.frozen_by()
    plain = static(config.sampling.steps, config.sampling.shift or 1.0)
    return counts(config, config.schedule() if frozen else plain, growers)


def _sent(config: Config, work: Counts, model: ModelNeeds, workers: int) -> dict[str, float]:
    latent = model.latent * BYTES[config.rollout.storage_dtype]
    found = {
        "latents to train on": work.stored * latent,
        "latents between tasks": work.frontier * latent,
        "pixels": work.pictures * model.pixels,
        "text": work.prompts * model.text,
        "weights": model.trained_bytes if workers else 0.0,
    }
    return {name: size for name, size in found.items() if size}
