"""The whole service in one process, without Ray: the real workers, references are the values
themselves."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

from actors.learner import Learner
from actors.reward import RewardWorker
from actors.rollout import RolloutWorker
from branchgrpo.config.schema import Config
from branchgrpo.service import Reference


class Flow:
    """Pending tasks, run in the order of their submission."""

    def __init__(self) -> None:
        self.pending: deque[Callable[[], None]] = deque()

    def run(self) -> None:
        while self.pending:
            self.pending.popleft()()


class Pool:
    """Workers that take turns. `calls` is what was asked of them: (method, arguments)."""

    def __init__(self, workers: list[Any]):
        self.workers, self.calls = workers, list[tuple[str, tuple[Any, ...]]]()

    def __len__(self) -> int:
        return len(self.workers)

    def flow(self) -> Flow:
        return Flow()

    def submit(
        self,
        flow: Flow,
        method: str,
        *arguments: Any,
        returns: int = 1,
        size: float = 1.0,
        then: Callable[[list[Reference]], None],
    ) -> None:
        worker = self.workers[len(self.calls) % len(self.workers)]
        self.calls.append((method, arguments))

        def task() -> None:
            found = getattr(worker, method)(*arguments)
            assert returns == 1 or len(found) == returns
            then(list(found) if returns > 1 else [found])

        flow.pending.append(task)

    def share(self, value: Any) -> Reference:
        return value

    def broadcast(self, method: str, *arguments: Any) -> list[Any]:
        return [getattr(worker, method)(*arguments) for worker in self.workers]

    def fetch(self, reference: Reference) -> Any:
        return reference


class RankGroup:
    """One learner rank."""

    def __init__(self, learner: Learner):
        self.learner = learner

    def call(self, method: str, *arguments: Any) -> list[Any]:
        return [getattr(self.learner, method)(*arguments)]

    def begin(self, method: str, *arguments: Any, size: float = 1.0) -> Callable[[], list[Any]]:
        return lambda: self.call(method, *arguments)

    def finish(self, call: Callable[[], list[Any]]) -> list[Any]:
        return call()


class Service:
    """Satisfies branchgrpo.service.Service. `published` lists what reached the workers: (weights,
    version, digest)."""

    faults: tuple[type[Exception], ...] = ()

    def __init__(self, config: Config):
        self.config = config
        self.earlier = Counter[str]()
        self.lost = dict[str, int]()
        self.rollouts = Pool(
            [RolloutWorker(config, index) for index in range(config.rollout.workers)]
        )
        count = config.reward_workers.workers
        self.rewards = [
            Pool([RewardWorker(config, group, index) for index in range(count)])
            for group in config.reward_groups
        ]
        self.learners = RankGroup(Learner(config, 0, list))
        for pool in (self.rollouts, *self.rewards):
            pool.broadcast("ready")
        self.learners.call("join", 1, "")
        self.reports: list[Mapping[str, Any]] = []
        self.published: list[tuple[str, int, str]] = []

    def configure(self, config: Config) -> Service:
        """All actors begin again with the untrained model."""
        if config != self.config:
            self.config = config
            for pool in (self.rollouts, *self.rewards):
                pool.broadcast("configure", config)
            self.learners.call("configure", config)
        return self

    def publish(self, weights: str = "policy") -> int:
        (version, digest), *update = self.learners.call("publish", weights)[0]
        assert self.rollouts.broadcast("load_weights", *update) == [digest] * len(self.rollouts)
        self.published.append((weights, version, digest))
        return int(version)

    def driver_bytes(self) -> int:
        return 0

    def recover(self, error: Exception) -> bool:
        raise error

    def follow(self) -> dict[str, int]:
        return {"restarts": self.earlier.total() + sum(self.lost.values()), "reissued": 0}

    def restarts(self) -> dict[str, int]:
        return self.lost

    def leaving(self) -> bool:
        return False

    def regroup(self) -> str:
        return ""

    def stopping(self) -> bool:
        return False

    def report(self, values: Mapping[str, Any]) -> None:
        self.reports.append(values)
