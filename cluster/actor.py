"""What pools and rank groups know of the actors that they make: their classes, names and places."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import ray

NAMESPACE = "branchgrpo"
"""Of all our named actors."""

Method = Callable[..., Any]
"""A method of the actors' class; it runs where the actor is."""


class WorkerClass(Protocol):
    """A class whose actors work in a pool. The last argument of its constructor is the worker's
    index."""

    def ready(self) -> Any:
        """Load what tasks need; called first."""

    def ping(self) -> None:
        """Is it alive?"""


class RankClass(Protocol):
    """A class whose actors are the ranks of a group."""

    def ping(self) -> None:
        """Is it alive?"""

    def rendezvous(self, host: str) -> str:
        """A free address of this host, where other ranks meet rank 0."""

    def join(self, ranks: int, address: str) -> None:
        """Meet so many ranks there, and load what is needed; called before anything else."""


class Place(NamedTuple):
    """Where an actor runs."""

    node: str
    process: int


def place(actor: Any) -> Place:
    """Runs in an actor, whatever its class, when it has been made."""
    del actor
    return Place(ray.get_runtime_context().get_node_id(), os.getpid())


def named(run: str, name: str) -> dict[str, str]:
    """Options of an actor that is found by this name while the run lives; none without a run."""
    return {"name": f"{run}/{name}", "namespace": NAMESPACE} if run else {}
