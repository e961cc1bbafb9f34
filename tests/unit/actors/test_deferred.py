"""Classes that are imported where their actors run."""

from __future__ import annotations

import inspect
from typing import Any, Protocol

import pytest

from actors import calls, deferred, learner, rollout, shared


class CountingCalls(Protocol):
    def most_common(self, n: int) -> list[tuple[str, int]]: ...


def test_an_instance_passes_calls_on_to_one_of_the_class() -> None:
    made = deferred.deferred("collections:Counter", CountingCalls)("aab")
    assert type(made).__name__ == "Counter" and repr(made) == "Counter({'a': 2, 'b': 1})"
    assert made.most_common(1) == [("a", 2)]
    assert not hasattr(made, "elements")


def signature(method: Any) -> inspect.Signature:
    """Without what Ray's tracing has added, where an actor was made of the class before."""
    found = inspect.signature(method)
    named = [value for name, value in found.parameters.items() if name != "_ray_trace_ctx"]
    return found.replace(parameters=named)


@pytest.mark.parametrize(
    ("real", "stands_in", "protocol"),
    [
        (rollout.RolloutWorker, deferred.RolloutWorker, calls.RolloutCalls),
        (learner.Learner, deferred.Learner, calls.LearnerCalls),
        (shared.SharedLearner, deferred.SharedLearner, calls.SharedLearnerCalls),
    ],
)
def test_what_is_called_is_there(real: Any, stands_in: Any, protocol: type) -> None:
    """Neither a protocol's empty method, nor another signature than the driver's calls see."""
    called = dict(inspect.getmembers(protocol, inspect.isfunction))
    names = {name for name in called if not name.startswith("_")}
    assert {"ping", "configure", "grow" if "grow" in names else "update"} <= names
    for name in names:
        assert getattr(real, name) is not called[name], name
        wanted = signature(called[name])
        assert signature(getattr(real, name)) == wanted, name
        assert signature(getattr(stands_in, name)) == wanted, name
    assert stands_in.__name__ == real.__name__


def test_calls_that_wait_for_files_say_so() -> None:
    for cls in (deferred.Learner, deferred.SharedLearner):
        bound = {name for name in dir(cls) if hasattr(getattr(cls, name), "storage_bound")}
        assert bound == {"configure", "checkpoint", "checkpointed", "restore", "export"}
