"""Tiny workers whose tasks say on which worker they ran, and fail as told; a light module, since
every actor imports it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import cloudpickle

from cluster.byte_counter import DriverByteCounter
from cluster.retry_policy import RetryPolicy
from cluster.tasks import wait
from cluster.worker_pool import WorkerPool

DAWDLE_SECONDS = 3.0

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors have no path to this folder


class Worker:
    """Keeps a log of what was asked of it, in order."""

    def __init__(self, folder: str, index: int):
        self.folder = Path(folder)
        self.index = index
        self.weights = "none"
        self.log("made")

    def log(self, text: str) -> None:
        with open(self.folder / f"worker-{self.index}", "a") as file:
            file.write(text + "\n")

    def ping(self) -> None:
        """Is it alive?"""

    def ready(self) -> int:
        self.log("ready")
        return os.getpid()

    def load_weights(self, weights: str) -> str:
        """The weights, as a digest of them would."""
        self.weights = weights
        self.log(f"load {weights}")
        return weights

    def task(self, key: int, seconds: float = 0.0) -> tuple[int, int, str]:
        """(key, worker, weights)."""
        self.log(f"task {key}")
        time.sleep(seconds)
        self.log(f"done {key}")
        return key, self.index, self.weights

    def once(self, key: int, act: str) -> tuple[int, int, str]:
        """A task that dies, hangs, dawdles or is overtaken where it runs first."""
        self.log(f"task {key}")
        again = self.folder / f"again-{key}"
        try:
            (self.folder / f"once-{key}").touch(exist_ok=False)
        except FileExistsError:
            again.touch()
            return key, self.index, self.weights
        while act == "overtaken" and not again.exists():
            time.sleep(0.05)
        if act == "overtaken":
            time.sleep(0.3)
            return key, self.index, self.weights
        if act == "hang":
            os.kill(os.getpid(), signal.SIGSTOP)
        if act == "die":
            os._exit(1)
        time.sleep(DAWDLE_SECONDS)
        return key, self.index, self.weights

    def kills(self, key: int) -> None:
        """A task that ends its worker every time."""
        self.log(f"task {key}")
        os._exit(1)

    def leaves(self, code: int) -> None:
        sys.exit(code)

    def hangs(self) -> None:
        """A task that never ends."""
        self.log("hangs")
        time.sleep(600)

    def swell(self) -> None:
        """Takes memory until it is ended."""
        swell()

    def raises(self, message: str) -> None:
        raise ZeroDivisionError(message)


def swell() -> None:
    """Memory, touched, until somebody ends this process."""
    held = []
    while True:
        held.append(bytearray(b"x") * (64 << 20))
        time.sleep(0.02)


class Rank:
    """A rank of a rank group, which is told what to do."""

    def __init__(self, folder: str, rank: int):
        self.folder, self.rank = Path(folder), rank

    def ping(self) -> None:
        """Is it alive?"""

    def rendezvous(self, ranks: int) -> str:
        return f"nowhere, for {ranks}"

    def join(self, ranks: int, address: str) -> None:
        """Fails as often as there are files for it."""
        for path in sorted(self.folder.glob(f"unfit-{self.rank}-*"))[:1]:
            path.unlink()
            raise ModuleNotFoundError("No module named 'broken'")

    def update(self, seconds: float) -> int:
        time.sleep(seconds)
        return self.rank

    def swell(self) -> None:
        """Rank 1 takes memory until it is ended; the others wait, as in a collective."""
        if self.rank == 1:
            swell()
        time.sleep(60)


class LentRank(Rank):
    """A rank that takes tasks, too."""

    def task(self, key: int, seconds: float = 0.0) -> tuple[int, int, str]:
        """As a worker's; ranks are counted from 100."""
        time.sleep(seconds)
        return key, 100 + self.rank, "own"


class UnfitHere(Worker):
    """Cannot get ready on the nodes that a file names, if there is one."""

    def ready(self) -> int:
        self.look("unfit")
        return super().ready()

    def look(self, name: str) -> None:
        import ray

        path = self.folder / name
        if path.exists() and ray.get_runtime_context().get_node_id() in path.read_text().split():
            raise ModuleNotFoundError("No module named 'broken'")


class UnmadeHere(UnfitHere):
    """Cannot even be made there."""

    def __init__(self, folder: str, index: int):
        super().__init__(folder, index)
        self.look("unfit")

    def ready(self) -> int:
        return os.getpid()


class Unfit(Worker):
    """Cannot get ready, and says why; what comes after fails for want of it."""

    def ready(self) -> int:
        raise FileNotFoundError("no weights here")

    def load_weights(self, weights: str) -> str:
        raise AttributeError("self.model")


def pool(
    folder: Path, count: int, cls: type = Worker, cpus: float = 0, **retry_policy: Any
) -> WorkerPool:
    """A pool of so many workers, whose logs go to `folder`."""
    return WorkerPool(
        cls=cls,
        role="rollout",
        count=count,
        resources={"num_cpus": cpus},
        arguments=(str(folder),),
        byte_counter=DriverByteCounter(),
        retry_policy=RetryPolicy(**{"task_timeout_seconds": 300.0} | retry_policy),
    )


def results(made: WorkerPool, calls: list[tuple[Any, ...]]) -> list[Any]:
    """What these calls, of a method and its arguments, gave, in the order in which it came."""
    tasks, found = made.tasks(), list[Any]()
    for method, *arguments in calls:
        made.submit(
            tasks,
            method,
            *arguments,
            then=lambda references: found.append(made.fetch(references[0])),
        )
    tasks.run()
    return found


def until(made: WorkerPool, condition: Callable[[], bool]) -> None:
    """Poll the pool until it is so."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, made.states()
        made.poll()
        wait(made)


def logs(folder: Path) -> dict[int, list[str]]:
    """What every worker noted."""
    return {
        int(path.name.split("-")[1]): path.read_text().splitlines()
        for path in sorted(folder.glob("worker-*"))
    }


def here() -> str:
    """How notes call the only node."""
    import ray

    from cluster import nodes

    return nodes.address(ray.get_runtime_context().get_node_id())
