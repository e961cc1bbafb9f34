"""A pool of equal workers: tasks go to the least busy one, results come as they finish."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import ray
from ray import ObjectRef, cloudpickle
from ray.actor import ActorHandle

from cluster.errors import cause

REFERENCE_BYTES = 28


class Meter:
    """Counts the bytes that pass through the driver: messages by their pickled size, a reference as its id."""

    def __init__(self) -> None:
        self.bytes = 0

    def count(self, message: Any) -> None:
        """Add a message sent or received."""
        buffer = io.BytesIO()
        sizer = _Sizer(buffer)
        sizer.dump(message)
        self.bytes += buffer.tell() + sizer.references * REFERENCE_BYTES

    def take(self) -> int:
        """The count since the last call."""
        taken, self.bytes = self.bytes, 0
        return taken


class _Sizer(cloudpickle.CloudPickler):  # type: ignore[misc]
    """Pickles without serialising references, which Ray would otherwise keep alive for ever."""

    def __init__(self, buffer: io.BytesIO):
        super().__init__(buffer, protocol=pickle.HIGHEST_PROTOCOL)
        self.references = 0

    def persistent_id(self, value: Any) -> str | None:
        if isinstance(value, ObjectRef):
            self.references += 1
            return ""
        return None


class Pool:
    """Workers of one class on Ray actors."""

    def __init__(
        self,
        cls: type,
        role: str,
        count: int,
        cpus: float,
        gpus: float,
        arguments: tuple[Any, ...],
        meter: Meter,
        timeout: float,
        runtime_env: dict[str, Any] | None = None,
    ):
        self.role, self.meter, self.timeout = role, meter, timeout
        options = {"num_cpus": cpus, "num_gpus": gpus} | ({"runtime_env": runtime_env} if runtime_env else {})
        actor = ray.remote(cls).options(**options)
        self.workers: list[ActorHandle[Any]] = [actor.remote(*arguments, index) for index in range(count)]
        self.load = [0] * count

    def wait_ready(self) -> None:
        """Until every worker has loaded what it needs. Raises what that raised."""
        self.broadcast("ready")

    def __len__(self) -> int:
        return len(self.workers)

    def flow(self) -> Flow:
        """A new set of pending tasks."""
        return Flow(self.timeout)

    def submit(self, flow: Flow, method: str, *arguments: Any, returns: int = 1, then: Callable[[list[ObjectRef[Any]]], None]) -> None:
        """Run `method` on the least busy worker; `then` gets its references when it has finished."""
        worker = min(range(len(self.workers)), key=lambda index: self.load[index])
        self.load[worker] += 1
        self.meter.count((method, arguments))
        found = getattr(self.workers[worker], method).options(num_returns=returns).remote(*arguments)
        references = found if returns > 1 else [found]

        def finished() -> None:
            self.load[worker] -= 1
            then(references)

        flow.add(references[0], f"{self.role}.{method}", finished)

    def broadcast(self, method: str, *arguments: Any) -> list[Any]:
        """Run `method` on every worker; results in their order."""
        try:
            return list(ray.get([getattr(worker, method).remote(*arguments) for worker in self.workers], timeout=self.timeout))
        except ray.exceptions.RayTaskError as error:
            raise cause(error) from error
        except ray.exceptions.GetTimeoutError as error:
            raise TimeoutError(f"{self.role}.{method}: no answer from all {len(self.workers)} workers in {self.timeout:g} s") from error

    def share(self, value: Any) -> ObjectRef[Any]:
        """A value that several tasks take, put into the object store once."""
        self.meter.count(value)
        return ray.put(value)

    def fetch(self, reference: ObjectRef[Any]) -> Any:
        """A small result, into the driver."""
        value = ray.get(reference)
        self.meter.count(value)
        return value

    def stop(self) -> None:
        """End the workers."""
        for worker in self.workers:
            ray.kill(worker)


class Flow:
    """Pending tasks and what to do when each finishes; steps may add further tasks."""

    def __init__(self, timeout: float):
        self.timeout = timeout
        self.pending: dict[ObjectRef[Any], tuple[str, Callable[[], None]]] = {}

    def add(self, reference: ObjectRef[Any], name: str, finished: Callable[[], None]) -> None:
        """Call `finished` once the task behind `reference` is done."""
        self.pending[reference] = (name, finished)

    def run(self) -> None:
        """Until nothing is pending. Raises the first task's error, or TimeoutError when none finishes in time."""
        while self.pending:
            done, _ = ray.wait(list(self.pending), num_returns=1, timeout=self.timeout, fetch_local=False)
            if not done:
                raise TimeoutError(f"no task finished in {self.timeout:g} s; waiting for {sorted({name for name, _ in self.pending.values()})}")
            for reference in done:
                _, finished = self.pending.pop(reference)
                finished()
