"""Failures that this package detects."""

from __future__ import annotations

import ray


class PlacementError(Exception):
    """The cluster lacks what was asked for: resources, a run of that name, a Ray at the address. The message says what; mendable by a person."""


class GangError(RuntimeError):
    """A rank died or missed its deadline; the whole gang was ended. A new one can be formed."""


class LostObjects(RuntimeError):
    """Results of finished tasks are gone with their node; what needed them must be computed again."""


class BudgetError(RuntimeError):
    """Workers died, or a task failed with its workers, more often than is allowed; the message says of what."""


def cause(error: BaseException) -> BaseException:
    """What a remote call really failed of: Ray wraps it, and some exceptions don't survive pickling."""
    inner = getattr(error, "cause", None)
    return inner if isinstance(inner, BaseException) else error


def lost(error: BaseException) -> bool:
    """An argument or result is gone with the node that held it."""
    return isinstance(error, ray.exceptions.ObjectLostError) or isinstance(cause(error), ray.exceptions.ObjectLostError)


def told(error: BaseException, what: str) -> BaseException:
    """What to raise when a remote call has failed: LostObjects, or what it really failed of. what: the call, in words."""
    return LostObjects(f"{what}: {str(error).splitlines()[0]}") if lost(error) else cause(error)


def ending(error: BaseException) -> str:
    """Why a worker is gone, in one word that restarts are counted by: preempted, memory, node, unavailable or died."""
    if getattr(error, "preempted", False):
        return "preempted"
    if isinstance(error, ray.exceptions.OutOfMemoryError) or "running low on memory" in str(error):  # Ray's memory monitor
        return "memory"
    if "node has died" in str(error):
        return "node"
    return "unavailable" if isinstance(error, ray.exceptions.ActorUnavailableError) else "died"
