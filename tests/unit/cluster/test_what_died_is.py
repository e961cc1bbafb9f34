"""What counts as an actor's death, and what is said of it."""

from __future__ import annotations

import pytest
from ray import exceptions
from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo

from cluster.errors import died, loss_cause, never_began, reason


def context(message: str, **info: int) -> exceptions.ActorDiedError:
    """As Ray makes it."""
    return exceptions.ActorDiedError(
        ActorDiedErrorContext(
            actor_id=b"0" * 16, error_message=message, node_death_info=NodeDeathInfo(**info)
        )
    )


PREEMPTED = NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED
EXIT = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR "
    "Worker exit detail: "
)
DEATHS = [
    (
        exceptions.OutOfMemoryError(
            "3 worker(s) were killed due to the node running low on memory. Memory on\nmore"
        ),
        "memory",
        "out of memory: ",
    ),
    (exceptions.NodeDiedError("gone"), "node", "its node is gone"),
    (exceptions.LocalRayletDiedError(), "node", "its node is gone"),
    (
        context("The actor is dead because its node has died. Node Id: 12"),
        "node",
        "its node is gone",
    ),
    (
        context("The actor is dead because its node has died.", reason=PREEMPTED),
        "preempted",
        "its node was preempted",
    ),
    (exceptions.ActorUnavailableError("RPC failed", b"0" * 16), "unavailable", "cannot be reached"),
    (exceptions.WorkerCrashedError(), "died", "The worker died unexpectedly"),
    (
        context(
            EXIT
            + (
                "Worker unexpectedly exits with a connection error code 2. End of file. Some "
                "common causes"
            )
        ),
        "died",
        "killed or crashed",
    ),
    (
        context(EXIT + "Worker exits unexpectedly. Worker exits with an exit code 3."),
        "died",
        "exit code 3",
    ),
    (
        context(
            EXIT
            + "by a signal. SystemExit is raised. Exit code: 1. The process receives a SIGTERM."
        ),
        "died",
        "told to end by SIGTERM",
    ),
    (context(EXIT + "Worker exited from signal 11"), "died", "killed by signal 11"),
    (exceptions.ActorPlacementGroupRemoved(), "died", "The placement group"),
]


@pytest.mark.parametrize(("error", "why", "words"), DEATHS)
def test_deaths(error: exceptions.RayError, why: str, words: str) -> None:
    assert died(error) and not never_began(error)
    assert (
        loss_cause(error) == why and reason(error).startswith(words) and "\n" not in reason(error)
    )


@pytest.mark.parametrize(
    "error",
    [
        exceptions.RuntimeEnvSetupError("no conda\nValueError: no Conda"),
        exceptions.ActorUnschedulableError("no node"),
    ],
)
def test_actors_that_never_were(error: exceptions.RayError) -> None:
    assert died(error) and never_began(error) and "\n" not in reason(error)


def test_no_deaths() -> None:
    """What an actor's own code raises, even of another one's death; and what is lost, late or
    full."""
    raised = exceptions.RayTaskError("update", "trace", ZeroDivisionError("by\nzero"))
    nested = exceptions.RayTaskError(
        "update", "trace", exceptions.ActorDiedError()
    ).as_instanceof_cause()
    assert isinstance(nested, exceptions.RayActorError)
    for error in (
        raised,
        nested,
        exceptions.ObjectLostError("00", "", ""),
        exceptions.GetTimeoutError("late"),
        exceptions.OutOfDiskError("full"),
    ):
        assert not died(error)
    assert reason(raised) == "ZeroDivisionError: by zero"
