"""Small functions on every node of the cluster, for looking rather than working."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import ray
from ray import cloudpickle
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.errors import one_line

DRIVER = "driver"
"""The name of this process among the machines."""
ROUNDS = 3
"""Questions for a machine's clock; the quickest answer counts."""

Answers = dict[str, Any]
"""By machine: what the function returned, or the exception."""


class Observer:
    """An actor that runs what it is given."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The function's result."""
        return function(*arguments)


class Machines:
    """Every living node of the cluster that this process is connected to, and this process; the
    process alone where there is no cluster.

    Functions travel by value, so that nodes on which our packages are missing can say so.
    """

    def __init__(self, seconds: float = 60.0):
        """seconds: how long all nodes together may take for an answer."""
        self.seconds = seconds
        self.nodes: dict[str, dict[str, Any]] = {}  # as ray.nodes() has them
        self.observers: dict[str, ActorHandle[Any]] = {}

    def __enter__(self) -> Self:
        if not ray.is_initialized():
            return self
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        # Actors without GPUs must see them here.
        seeing = {"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}}
        for node in ray.nodes():
            if node["Alive"]:
                name = f"{node['NodeManagerHostname']}/{node['NodeID'][:6]}"
                place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                self.nodes[name] = node
                self.observers[name] = (
                    ray.remote(Observer)
                    .options(num_cpus=0, scheduling_strategy=place, runtime_env=seeing)
                    .remote()
                )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for observer in self.observers.values():
            ray.kill(observer)
        if self.observers:
            cloudpickle.unregister_pickle_by_value(sys.modules[__name__])

    def call(self, function: Callable[..., Any], *arguments: Any) -> Answers:
        """Run it everywhere, on the nodes at the same time."""
        by_value = sys.modules[function.__module__]
        foreign = (
            bool(self.observers)
            and by_value.__name__ not in cloudpickle.list_registry_pickle_by_value()
        )
        if foreign:
            cloudpickle.register_pickle_by_value(by_value)
        try:
            references = {
                name: observer.call.remote(function, *arguments)
                for name, observer in self.observers.items()
            }
        finally:
            if foreign:
                cloudpickle.unregister_pickle_by_value(by_value)
        answers: Answers = {DRIVER: _outcome(lambda: function(*arguments))}
        deadline = time.monotonic() + self.seconds
        for name, reference in references.items():
            seconds = max(0.0, deadline - time.monotonic())
            answers[name] = _outcome(partial(ray.get, reference, timeout=seconds))
        return answers

    def clocks(self) -> dict[str, tuple[float, float]]:
        """By node: seconds that its clock is ahead of this process's, and how exact that is."""
        found: dict[str, tuple[float, float]] = {}
        for name, observer in self.observers.items():
            rounds = []
            for _ in range(ROUNDS):
                sent = time.time()
                there = ray.get(observer.call.remote(time.time), timeout=self.seconds)
                took = time.time() - sent
                rounds.append((took / 2, there - sent - took / 2))
            exact, ahead = min(rounds)
            found[name] = (ahead, exact)
        return found


def _outcome(function: Callable[[], Any]) -> Any:
    """A machine's failure is a finding, not this program's."""
    try:
        return function()
    except Exception as error:
        return getattr(error, "cause", None) or error


def failures(answers: Answers) -> str:
    """Which machines gave none, and why, in one line; empty when all did."""
    broken = {name: answer for name, answer in answers.items() if isinstance(answer, Exception)}
    return "; ".join(
        f"{name}: {type(error).__name__}: {one_line(error)[:200]}" for name, error in broken.items()
    )


def leave(folder: str, token: str) -> str:
    """Write a small file into the folder, or what is there of the path to it; returns where it
    lies."""
    from fsspec.core import url_to_fs

    system, path = url_to_fs(folder)
    if "file" in system.protocol:
        while not system.exists(path):
            path = system._parent(path)
        if not system.isdir(path):
            raise NotADirectoryError(f"expected a folder, {path} is none")
    file = f"{path.rstrip('/')}/.branchgrpo-doctor-{token}-{uuid4().hex[:8]}"
    with system.open(file, "wb") as stream:
        stream.write(token.encode())
    return file


def missing(folder: str, files: Sequence[str]) -> list[str]:
    """Which of these files are not to be seen."""
    from fsspec.core import url_to_fs

    system, _ = url_to_fs(folder)
    return [file for file in files if not system.exists(file)]


def remove(folder: str, files: Sequence[str]) -> None:
    """Take them away, those that others have not."""
    from fsspec.core import url_to_fs

    system, _ = url_to_fs(folder)
    for file in files:
        with suppress(FileNotFoundError):
            system.rm(file)
