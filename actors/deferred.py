"""Classes whose actors load torch, for a driver that never does: each is imported where its actors
run."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from inspect import getmembers, isfunction
from typing import Any

from actors.calls import LearnerCalls, RolloutCalls, SharedLearnerCalls


def deferred(place: str, calls: type) -> type[Any]:
    """A class of the same name as the one at `place` ("module:Class"). An instance makes one of
    that class, imported then, and passes on to it the methods of the protocol `calls`."""
    module, name = place.split(":")

    def __init__(self: Any, *arguments: Any) -> None:
        self.instance = getattr(import_module(module), name)(*arguments)

    def __repr__(self: Any) -> str:
        return repr(self.instance)

    methods = {
        key: _passed_on(method)
        for key, method in getmembers(calls, isfunction)
        if not key.startswith("_")
    }
    own = {"__init__": __init__, "__repr__": __repr__, "__module__": __name__}
    return type(name, (), own | methods)


def _passed_on(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)  # with its signature, and what it says of deadlines
    def passed_on(self: Any, *arguments: Any) -> Any:
        return getattr(self.instance, method.__name__)(*arguments)

    return passed_on


RolloutWorker = deferred("actors.rollout:RolloutWorker", RolloutCalls)
Learner = deferred("actors.learner:Learner", LearnerCalls)
SharedLearner = deferred("actors.shared:SharedLearner", SharedLearnerCalls)
