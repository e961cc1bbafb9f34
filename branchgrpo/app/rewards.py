"""Rewards that a program gives in place of a config's."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from branchgrpo.config import kinds, references
from branchgrpo.config.references import Unusable
from branchgrpo.config.registry import REWARDS, Object
from branchgrpo.config.schema import Config
from branchgrpo.errors import UserError, kind_and_line
from branchgrpo.rewards.base import RewardOptions

Given = str | RewardOptions | type[RewardOptions] | Callable[..., Any]
RewardLike = Given | tuple[Given, float]
"""A reward: a function f(images, samples) -> list[float], or an object that is called like one; a
component, that is a subclass of RewardOptions or an instance; or a name, as in a config: where the
config has a reward of that name, that one with its options. With a weight: (reward, weight).

images: PIL images, of videos lists of their frames. samples: a `Sample` for each. Higher is better.
"""


def with_rewards(config: Config, rewards: Sequence[RewardLike] | None) -> Config:
    """The config with these rewards in place of its own; None: as it is. `evaluation.metric` goes
    where it names a score that they don't report.

    Raises UserError for what is no reward, or does not go with the config.
    """
    if rewards is None:
        return config
    if isinstance(rewards, str) or not isinstance(rewards, Sequence) or not rewards:
        raise UserError(f"rewards: expected a list of at least one reward, got {rewards!r}")
    chosen = list[RewardOptions]()
    for index, one in enumerate(rewards):
        given, weight = one if isinstance(one, tuple) and len(one) == 2 else (one, None)
        if weight is not None and (isinstance(weight, bool) or not isinstance(weight, int | float)):
            raise UserError(f"rewards.{index}: expected (reward, weight), got {one!r}")
        taken = [other.title for other in chosen]
        found = _reward(given, f"rewards.{index}", config, taken)
        keys = {} if weight is None else {"weight": float(weight)}
        chosen.append(found.model_copy(update=keys))
    reported = {f"{one.title}/{score}" for one in chosen for score in one.reported()}
    evaluation = config.evaluation
    if evaluation.metric not in reported:
        evaluation = evaluation.model_copy(update={"metric": ""})
    whole = {field: getattr(config, field) for field in type(config).model_fields}
    try:
        return Config.model_validate(whole | {"rewards": tuple(chosen), "evaluation": evaluation})
    except ValidationError as error:
        raise UserError("\n".join(_lines(error))) from error


def check_sendable(config: Config) -> None:
    """Raise UserError for a reward that cannot be pickled, as it is for workers."""
    from ray import cloudpickle

    for index, reward in enumerate(config.all_rewards):
        try:
            cloudpickle.dumps(reward)
        except Exception as error:  # whatever somebody else's object does
            raise UserError(
                f"{config.reward_key(index)} ({reward.title}): expected what can be pickled for "
                f"workers: {kind_and_line(error)}"
            ) from error


def _reward(given: Any, key: str, config: Config, taken: Sequence[str]) -> RewardOptions:
    """The component that is meant."""
    if isinstance(given, str):
        for own in config.rewards:
            if given in (own.title, own.name):
                return own
        return _made(_found(given, key), key)
    if isinstance(given, RewardOptions) and "name" in type(given).model_fields:
        return given
    if not callable(given) and not isinstance(given, RewardOptions):
        raise UserError(
            f"{key}: expected a function f(images, samples), a name or a component, got {given!r}"
        )
    name = _free(_name(given), taken)
    target, keys = given, dict[str, Any]()
    if isinstance(given, RewardOptions):
        target = type(given)
        keys = {option: getattr(given, option) for option in given.model_fields_set}
    try:
        return _made(REWARDS.plugged(name, Object(target)), key, **keys)
    except Unusable as error:
        raise UserError(f"{key}: {error}") from error


def _found(name: str, key: str) -> type[RewardOptions]:
    try:
        found: type[RewardOptions] = REWARDS.find(references.absolute(name, Path()))
        return found
    except KeyError:
        raise UserError(
            f"{key}: expected one of {', '.join(REWARDS.names())}, got "
            f"{name!r}{kinds.closest(name, REWARDS.names())}"
        ) from None
    except Unusable as error:
        raise UserError(f"{key}: {error}") from error


def _made(found: type[RewardOptions], key: str, **keys: Any) -> RewardOptions:
    try:
        return found(**keys)
    except ValidationError as error:
        raise UserError("\n".join(_lines(error, f"{key}."))) from error


def _lines(error: ValidationError, prefix: str = "") -> list[str]:
    """A line for each mistake."""
    found = list[str]()
    for one in error.errors():
        place = ".".join(str(part) for part in one["loc"])
        words = one["msg"].removeprefix("Value error, ")
        found += [f"{prefix}{place}: {words}" if place else words]
    return found


def _name(given: Any) -> str:
    """What a function, a class or an object is called, as a name of scores."""
    while isinstance(given, partial):
        given = given.func
    name = getattr(given, "__name__", type(given).__name__)
    return re.sub(r"[^A-Za-z0-9._-]", "", name) or "reward"


def _free(name: str, taken: Sequence[str]) -> str:
    """The name, or NAME-2, …, where it is another reward's."""
    tries = chain([name], (f"{name}-{number}" for number in count(2)))
    return next(one for one in tries if one not in taken and one not in REWARDS.names())
