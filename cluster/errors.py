"""Failures that this package detects."""

from __future__ import annotations

import re

import ray

DIED = (
    ray.exceptions.RayActorError,  # died, or cannot be reached
    ray.exceptions.OutOfMemoryError,  # ended by Ray's memory monitor
    ray.exceptions.NodeDiedError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.RuntimeEnvSetupError,  # the rest: an actor that was never made, and will not be
    ray.exceptions.ActorUnschedulableError,
    ray.exceptions.ActorPlacementGroupRemoved,
)
"""What Ray raises for a call to an actor that is gone. Ask `died`."""


class PlacementError(Exception):
    """The cluster lacks what was asked for: resources, a run of that name, a Ray at the address.
    The message says what; mendable by a person."""


class RankGroupError(RuntimeError):
    """A rank died or missed its deadline; the whole rank group was ended. A new one can be
    formed."""


class LostObjects(RuntimeError):
    """Results of finished tasks are gone with their node; what needed them must be computed
    again."""


class BudgetError(RuntimeError):
    """Workers died, or a task failed with its workers, more often than is allowed; the message says
    of what."""


def died(error: BaseException) -> bool:
    """Is the actor gone? What its own code raised is no death, even where that is of another
    actor's death."""
    return isinstance(error, DIED) and not isinstance(error, ray.exceptions.RayTaskError)


def never_began(error: BaseException) -> bool:
    """Was the actor never there: neither made nor able to be?"""
    failed = isinstance(
        error, ray.exceptions.RuntimeEnvSetupError | ray.exceptions.ActorUnschedulableError
    )
    return failed or bool(getattr(error, "actor_init_failed", False))


def cause(error: BaseException) -> BaseException:
    """What a remote call really failed of: Ray wraps it, and some exceptions don't survive
    pickling."""
    inner = getattr(error, "cause", None)
    return inner if isinstance(inner, BaseException) else error


def objects_lost(error: BaseException) -> bool:
    """An argument or result is gone with the node that held it."""
    return isinstance(error, ray.exceptions.ObjectLostError) or isinstance(
        cause(error), ray.exceptions.ObjectLostError
    )


def original(error: BaseException, what: str) -> BaseException:
    """What to raise when a remote call has failed: LostObjects, or what it really failed of. what:
    the call, in words."""
    return (
        LostObjects(f"{what}: {str(error).splitlines()[0]}")
        if objects_lost(error)
        else cause(error)
    )


def loss_cause(error: BaseException) -> str:
    """Why a worker is gone, in one word that restarts are counted by: preempted, memory, node,
    unavailable or died."""
    if getattr(error, "preempted", False):
        return "preempted"
    # Ray's memory monitor
    if isinstance(error, ray.exceptions.OutOfMemoryError) or "running low on memory" in str(error):
        return "memory"
    if isinstance(
        error, ray.exceptions.NodeDiedError | ray.exceptions.LocalRayletDiedError
    ) or "node has died" in str(error):
        return "node"
    return "unavailable" if isinstance(error, ray.exceptions.ActorUnavailableError) else "died"


def one_line(error: object) -> str:
    """The message of an error without its line ends."""
    return " ".join(str(error).split())


def kind_and_line(error: BaseException) -> str:
    """What kind of error it is, and its message without line ends."""
    return f"{type(error).__name__}: {one_line(error)}"


CAUSE_WORDS = {
    "preempted": "its node was preempted",
    "memory": "out of memory: ended by Ray's memory monitor",
    "node": "its node is gone",
    "unavailable": "cannot be reached",
    "lost": "what it needed went with a node",
    "unresponsive": "gave no answer",
}
"""Endings, for people."""


def reason(error: BaseException) -> str:
    """Why an actor is gone or could not start, for people: in a few words where Ray knows, else its
    last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [
        type(error).__name__
    ]
    if not died(error):
        inner = cause(error)
        return kind_and_line(inner)
    if never_began(error):
        return lines[-1]
    why, text = loss_cause(error), str(error)
    if why in CAUSE_WORDS:
        return CAUSE_WORDS[why]
    if "receives a SIGTERM" in text:
        return "told to end by SIGTERM"
    if found := re.search(r"exit code (\d+)", text):
        return f"exit code {found[1]}"
    if found := re.search(r"signal (\d+)", text):
        return f"killed by signal {found[1]}"
    if "End of file" in text:  # all that Ray knows of SIGKILL, of a crash, and of os._exit
        return "killed or crashed: its process ended without a word"
    return lines[-1].rpartition("Worker exit detail: ")[2]
