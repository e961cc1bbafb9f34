"""What is known of a config's prompts before anything starts: enough of them, none that a reward
cannot score."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from branchgrpo.config.schema import Config
from branchgrpo.data import prompts
from branchgrpo.data.lists import Prompts
from branchgrpo.errors import UserError
from branchgrpo.rewards.base import RewardOptions

SHOWN = 3
"""Prompts that are named of each fault."""

WIDEST = 100
"""Characters of a prompt that are shown."""


@dataclass(slots=True, kw_only=True)
class Refused:
    """Prompts of one list that one reward cannot score, for one reason."""

    key: str  # prompts or held_out
    reward: str  # "rewards.0 (ocr)"
    kind: str
    unit: str  # what numbers count: line, item, row
    source: str  # the file
    count: int = 0
    # number and detail of the first SHOWN
    first: list[tuple[int, str]] = field(default_factory=list)

    def __str__(self) -> str:
        named = "; ".join(f"{self.unit} {number}: {detail}" for number, detail in self.first)
        return (
            f"{self.reward}: expected prompts that it can score, got {self.count} of "
            f"{self.key} with {self.kind} ({self.source}, {named})"
        )


def check(config: Config) -> None:
    """Raise UserError for prompts that a run could not use, in one line."""
    train, held_out = prompts.lists(config)
    if reason := shortage(config, train, held_out):
        raise UserError(reason)
    for key, samples in (("prompts", train), ("held_out", held_out)):
        if reason := pictureless(config, key, samples):
            raise UserError(reason)
    found = [
        one
        for key, texts in (("prompts", train), ("held_out", held_out))
        for one in refused(config, key, texts)
    ]
    if found:
        more = (
            f"; branchgrpo prompts shows {len(found) - 1} more of such faults" if found[1:] else ""
        )
        raise UserError(f"{found[0]}{more}")


def shortage(config: Config, train: Prompts, held_out: Prompts) -> str:
    """What there is too little of; empty where there is enough."""
    try:
        prompts.deal(len(train), config.rollout.prompts, 0, config.run.seed)
    except UserError as error:
        return f"{error} in {config.prompts}" + (
            f", where {train.repeated} more are repeated" if train.repeated else ""
        )
    wanted = max(config.evaluation.prompts, config.evaluation.diversity)
    if len(held_out) < wanted:
        repeated = (
            ""
            if config.held_out.startswith(prompts.SPLIT) or not held_out.repeated
            else f", where {held_out.repeated} more are repeated"
        )
        return (
            f"held_out: expected at least {wanted} prompts for evaluation, got "
            f"{len(held_out)} in {config.held_out}{repeated}"
        )
    if (
        config.held_out.startswith(prompts.SPLIT)
        or not prompts.shared(train, held_out)[:wanted].all()
    ):
        return ""
    return (
        f"held_out: expected texts that are not trained on, got {config.held_out}: the first "
        f"{wanted}, which evaluation takes, are in {config.prompts} too"
    )


def pictureless(config: Config, key: str, samples: Prompts) -> str:
    """Which records lack the pictures that the model is to see; empty where none does."""
    least, most = config.model.pictures_taken
    wrong, first = 0, ""
    for place, sample in enumerate(samples if most else ()):
        count = len(sample.images)
        missing = [one.path for one in sample.images if not (one.data or Path(one.path).is_file())]
        if least <= count <= most and not missing:
            continue
        wrong += 1
        what = f"none at {missing[0]}" if missing else f"{count} pictures"
        first = first or f"{samples.unit} {samples.number(place)}: {what}"
    if not wrong:
        return ""
    wanted = f"{least}" if least == most else f"{least} to {most}"
    return (
        f"{key}: expected {wanted} pictures with each record, as image or images, for "
        f"{config.model.called}, got {wrong} of {len(samples)} without ({samples.source}, {first})"
    )


def refused(config: Config, key: str, texts: Prompts) -> list[Refused]:
    """What each reward cannot score, of one list: by reward and reason, in the order they come."""
    size = (config.model if key == "prompts" else config.evaluated).picture_size
    found: dict[tuple[int, str], Refused] = {}
    # what is trained on, only rewards that train see
    rewards = config.rewards if key == "prompts" else config.all_rewards
    asked = [
        (index, reward)
        for index, reward in enumerate(rewards)
        if type(reward).refusal is not RewardOptions.refusal
    ]
    for place, sample in enumerate(texts if asked else ()):
        for index, reward in asked:
            if (why := reward.refusal(sample, *size)) is None:
                continue
            name = f"{config.reward_key(index)} ({reward.title})"
            one = found.setdefault(
                (index, why.kind),
                Refused(key=key, reward=name, kind=why.kind, unit=texts.unit, source=texts.source),
            )
            one.count += 1
            if one.count <= SHOWN:
                one.first.append((texts.number(place), shortened(why.detail)))
    return list(found.values())


def notes(config: Config) -> list[str]:
    """What was left out of the lists and what they share, a line each; nothing where there is
    nothing to say."""
    train, held_out = prompts.lists(config)
    divided = config.held_out.startswith(prompts.SPLIT)
    lines = [
        left_out(key, texts)
        for key, texts in (("prompts", train), ("held_out", held_out))[: 1 if divided else 2]
        if texts.blank or texts.repeated
    ]
    if not divided and (both := int(prompts.shared(train, held_out).sum())):
        lines.append(
            f"{both} of {len(held_out)} held-out prompts are trained on too: their scores "
            "say nothing of unseen prompts"
        )
    return lines


def left_out(key: str, texts: Prompts) -> str:
    """One line of what a file's rows became."""
    return (
        f"{key}: {texts.repeated} repeated and {texts.blank} blank or null prompts left out "
        f"of {texts.source}"
    )


def shortened(text: str) -> str:
    """At most WIDEST characters."""
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 1]}…"
