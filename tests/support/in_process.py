"""The whole service in one process, without Ray: the real workers, references are the values
themselves."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from actors.groups import Learners, SharedLearners
from actors.learner import Learner
from actors.pools import Method, Rewards, Rollouts
from actors.reward import RewardWorker
from actors.rollout import RolloutWorker
from actors.shared import SharedLearner
from branchgrpo.config.schema import Config
from branchgrpo.models import weights as wire
from branchgrpo.service import Reference


class Tasks:
    """Pending tasks, run in the order of their submission."""

    def __init__(self) -> None:
        self.pending: deque[Callable[[], None]] = deque()

    def run(self) -> None:
        while self.pending:
            self.pending.popleft()()


class Pool:
    """Workers, and ranks that are lent, that take turns. `calls` is what was asked of them:
    (method, arguments)."""

    def __init__(self, workers: list[Any], lent: Sequence[Any] = ()):
        self.workers, self.calls = workers, list[tuple[str, tuple[Any, ...]]]()
        self.everyone = [*lent, *workers]

    def __len__(self) -> int:
        return len(self.everyone)

    @property
    def desired(self) -> int:
        return len(self.workers)

    def withhold(self) -> None:
        """Nobody comes later."""

    def tasks(self) -> Tasks:
        return Tasks()

    def submit(
        self,
        tasks: Tasks,
        method: Method,
        *arguments: Any,
        returns: int = 1,
        size: float = 1.0,
        then: Callable[[list[Reference]], None],
    ) -> None:
        worker = self.everyone[len(self.calls) % len(self)]
        self.calls.append((method.__name__, arguments))

        def task() -> None:
            found = getattr(worker, method.__name__)(*arguments)
            assert returns == 1 or len(found) == returns
            then(list(found) if returns > 1 else [found])

        tasks.pending.append(task)

    def share(self, value: Any) -> Reference:
        return value

    def broadcast(self, method: Method, *arguments: Any) -> list[Any]:
        return [getattr(worker, method.__name__)(*arguments) for worker in self.workers]

    def sync(self, calls: Sequence[tuple[Method, tuple[Any, ...]]], version: int = 0) -> None:
        """Nobody comes later."""

    def fetch(self, reference: Reference) -> Any:
        return reference


class Ranks:
    """One learner rank."""

    def __init__(self, learner: Learner):
        self.learner = learner

    def call(self, method: Method, *arguments: Any) -> list[Any]:
        return [getattr(self.learner, method.__name__)(*arguments)]

    def begin(self, method: Method, *arguments: Any, size: float = 1.0) -> Callable[[], list[Any]]:
        return lambda: self.call(method, *arguments)

    def finish(self, call: Callable[[], list[Any]]) -> list[Any]:
        return call()

    def leader(self, method: Method, *arguments: Any, returns: int = 1) -> list[Reference]:
        (found,) = self.call(method, *arguments)
        assert returns == 1 or len(found) == returns
        return list(found) if returns > 1 else [found]


class Service:
    """Satisfies branchgrpo.service.Service. `published` lists what reached the workers: (weights,
    version, digest)."""

    faults: tuple[type[Exception], ...] = ()

    def __init__(self, config: Config):
        self.config = config
        self.earlier = Counter[str]()
        self.lost = dict[str, int]()
        workers = [RolloutWorker(config, index) for index in range(config.rollout.workers)]
        scorers = range(config.reward_workers.workers)
        shared = config.cluster.layout == "shared"
        self.learner = (SharedLearner if shared else Learner)(config, 0, list)
        self.rollout_pool = Pool(workers, [self.learner] if shared else [])
        self.reward_pools = [
            Pool([RewardWorker(config, group, index) for index in scorers])
            for group in config.reward_groups
        ]
        self.rollouts = Rollouts(self.rollout_pool)
        self.rewards = [Rewards(pool) for pool in self.reward_pools]
        self.learners = (SharedLearners if shared else Learners)(Ranks(self.learner))
        self.rollout_pool.broadcast(RolloutWorker.ready)
        for pool in self.reward_pools:
            pool.broadcast(RewardWorker.ready)
        self.learner.join(1, "")
        self.reports: list[Mapping[str, Any]] = []
        self.published: list[tuple[str, int, str]] = []

    def configure(self, config: Config) -> Service:
        """All actors begin again with the untrained model."""
        if config != self.config:
            self.config = config
            self.rollout_pool.broadcast(RolloutWorker.configure, config)
            for pool in self.reward_pools:
                pool.broadcast(RewardWorker.configure, config)
            self.learner.configure(config)
        return self

    def publish(self, weights: str = "policy") -> int:
        found = self.learners.publish(self.rollouts, weights)
        held = {wire.digest_of(worker.model.trainable()) for worker in self.rollout_pool.workers}
        assert held <= {found.digest}
        self.published.append((weights, found.version, found.digest))
        return found.version

    def driver_bytes(self) -> int:
        return 0

    def recover(self, error: Exception) -> bool:
        return False

    def follow(self) -> dict[str, int]:
        return {"restarts": self.earlier.total() + sum(self.lost.values()), "reissued": 0}

    def restarts(self) -> dict[str, int]:
        return self.lost

    def leaving(self) -> bool:
        return False

    def regroups(self) -> bool:
        return False

    def regroup(self) -> str:
        return ""

    def stopping(self) -> bool:
        return False

    def report(self, values: Mapping[str, Any]) -> None:
        self.reports.append(values)
