"""The workers of a pool: they are started, brought up to the others, drained, lost and replaced."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any

import ray

from cluster import nodes, pings, ray_private
from cluster.actor import Method, WorkerClass, named, place
from cluster.avoid import Avoided, labels
from cluster.deadlines import Deadlines
from cluster.dispatcher import Dispatcher
from cluster.errors import CAUSE_WORDS, original, reason
from cluster.lent_ranks import LentRanks
from cluster.placement import bundle
from cluster.restart_budget import NOT_COUNTED, RestartBudget
from cluster.retry_policy import RetryPolicy
from cluster.worker import Attempt, State, Worker

VERBS = {"start": "could not start", "unresponsive": "was ended"}
"""What became of a worker, by cause; of all others: it died."""


class Workers:
    """Actors of one class, in the order in which they were made. `desired` may be changed at any
    time: `poll` follows it. Tasks of those that are gone go back to the dispatcher."""

    def __init__(
        self,
        cls: type[WorkerClass],
        role: str,
        count: int,
        resources: dict[str, Any],
        arguments: tuple[Any, ...],
        dispatcher: Dispatcher,
        retry_policy: RetryPolicy,
        run: str,
        note: Callable[[str], None],
    ):
        """See WorkerPool."""
        self.actor = ray.remote(cls)
        self.role = role
        self.desired = count
        self.resources = resources
        self.arguments = arguments
        self.dispatcher = dispatcher
        self.retry_policy = retry_policy
        self.run = run
        self.note = note
        self.created = 0  # those that are gone too
        # after `ready`: what brings a newcomer up to the others
        self.sync_calls: list[tuple[str, tuple[Any, ...]]] = []
        self.sync_round = 0
        self.version = 0
        self.deadlines = Deadlines(retry_policy)
        self.budget = RestartBudget(role, retry_policy)
        self.avoided = Avoided()  # nodes where newcomers could not start
        self.formed = False  # all were ready once: who cannot start later is a newcomer
        self.withheld = False  # what brings a newcomer up to the others is not to be had
        self.lent: LentRanks | None = None  # these take tasks, too
        self.unfit = 0  # newcomers in a row that could not start, while nobody else was there
        self._workers: list[Worker] = []

    def __iter__(self) -> Iterator[Worker]:
        return iter(tuple(self._workers))

    def __len__(self) -> int:
        return len(self._workers)

    def __getitem__(self, place: int) -> Worker:
        return self._workers[place]

    @property
    def ready(self) -> list[Worker]:
        """Those that are ready."""
        return [worker for worker in self if worker.state is State.READY]

    @property
    def available(self) -> list[Worker]:
        """Those that may take tasks: they are ready, and brought up to the others."""
        lent = self.lent.available if self.lent else []
        if self.withheld:
            return lent
        return lent + [worker for worker in self.ready if worker.sync_round == self.sync_round]

    def look_after(self, now: float) -> None:
        """End and replace those that don't answer or wait where nothing is to be had; give what
        takes too long to others as well."""
        self._end_overdue(now)
        for worker, why, words in list(pings.unanswered(self, now)):
            self.remove(worker, why, words)
        self._look_elsewhere()

    def scale(self) -> None:
        """Start and end workers as desired."""
        active = [worker for worker in self if worker.state is not State.DRAINING]
        # those that would be missed least: not ready, then the least busy, then the newest
        active.sort(key=lambda one: (one.state is State.READY, len(one.pending), -one.index))
        for worker in active[: max(0, len(active) - self.desired)]:
            worker.drain()
        for worker in self:
            if worker.state is State.DRAINING and not worker.tasks:
                self.remove(worker, "scaled")
        for _ in range(self.desired - len(active)):
            self._start()
        for line in self.budget.unreplaced():
            self.note(line)

    def _start(self) -> None:
        name = f"{self.role}-{self.created}"
        avoiding = self._avoiding()
        options = self.resources | named(self.run, name)
        options |= {"label_selector": labels(avoiding)} if avoiding else {}
        handle = self.actor.options(**options).remote(*self.arguments, self.created)
        placed = ray_private.call_in_actor(handle, place)
        worker = Worker(
            index=self.created, name=name, handle=handle, placed=placed, avoiding=avoiding
        )
        self.created += 1
        if line := self.budget.replaced(by=name):
            self.note(line)
        self._workers.append(worker)
        self._sync(worker, [("ready", ()), *self.sync_calls])

    def _sync(self, worker: Worker, calls: list[tuple[str, tuple[Any, ...]]]) -> None:
        worker.begin_sync(self.sync_round)
        references = [
            getattr(worker.handle, method).remote(*arguments) for method, arguments in calls
        ]
        attempt = Attempt(worker, references, None, time.monotonic())
        self.dispatcher.watch(attempt, references[-1])

    def bring_up(self) -> None:
        """Let idle ones that are behind run what `sync` was given."""
        for worker in self:
            if worker.idle and worker.sync_round != self.sync_round:
                if self.sync_calls:
                    self._sync(worker, self.sync_calls)
                worker.sync_round, worker.version = self.sync_round, self.version

    def withhold(self) -> None:
        """What workers would hold by now is not to be had: until the next `sync` they take no
        tasks."""
        self.withheld = True

    def sync(self, calls: Iterable[tuple[Method, tuple[Any, ...]]], version: int = 0) -> None:
        """From now on, newcomers and those that are busy run these methods before any work; they
        then hold this version of what the methods bring."""
        self.withheld = False
        self.sync_calls = [(method.__name__, arguments) for method, arguments in calls]
        self.sync_round += 1
        self.version = version
        for worker in self:
            if worker.idle:  # a broadcast brought these up already
                worker.sync_round, worker.version = self.sync_round, version

    def became_ready(self, worker: Worker, now: float) -> None:
        """It has loaded what it needs."""
        worker.become_ready()
        worker.began, self.unfit = now, 0
        if worker.sync_round == self.sync_round:
            worker.version = self.version

    def on_nodes_changed(self, alive: Container[str], draining: Container[str]) -> None:
        """Nodes that are not alive took their workers with them, idle ones too. On those that will
        go, workers finish what they have, and others take their place elsewhere; no budget counts
        that."""
        for worker in self:
            if worker.place is None:
                continue
            if worker.place.node not in alive:
                self.remove(worker, "node")
            elif worker.state is not State.DRAINING and worker.place.node in draining:
                worker.drain("preempted")
                self.note(
                    f"{self._name(worker)}: that node will go; another worker takes its "
                    "place when it has done its work"
                )

    def release_unplaced(self) -> None:
        """End workers that have no place yet: others are to get the room that comes free now."""
        for worker in [worker for worker in self if not worker.find_place()]:
            self.remove(worker, "scaled")

    def reset(self, *arguments: Any) -> None:
        """What workers are made with is another from now on. Those that start or are busy end:
        they cannot be given it. The others must be, by a broadcast."""
        self.arguments = arguments
        self.deadlines.broadcasts.clear()
        for worker in [worker for worker in self if not worker.idle]:
            self.remove(worker, "scaled")
        self.sync([])

    def _avoiding(self) -> frozenset[str]:
        """Nodes where newcomers are not to be; none when nobody is there and no other node could
        hold one."""
        found = frozenset(self.avoided.nodes())
        alone = bool(found) and all(worker.new for worker in self)
        return frozenset() if alone and not nodes.fits(bundle(self.resources), found) else found

    def _look_elsewhere(self) -> None:
        """Workers that wait for room are made again when the nodes that they must avoid are others
        by now."""
        if not self.avoided.until:
            return
        avoiding = self._avoiding()
        for worker in self:
            if worker.new and worker.avoiding != avoiding and not worker.find_place():
                self.remove(worker, "scaled")

    def _end_overdue(self, now: float) -> None:
        """Issue again what takes too long; end workers that don't answer."""
        for worker in [*self, *(self.lent or ())]:
            late = self.deadlines.overdue(worker, now)
            if late and late.hung:
                self.remove(worker, "unresponsive", late.words)
            elif late:
                others = [one for one in self.available if one is not worker]
                for line in self.dispatcher.reissue(worker, others, late.words):
                    self.note(line)

    def could_not_start(self, worker: Worker, error: ray.exceptions.RayError) -> None:
        """It failed before it was ever ready. Raises why, while the pool is formed; later only
        when nobody is left and several in a row could not: until then others are started,
        elsewhere."""
        alone = all(one.new for one in self)
        self.unfit = self.unfit + 1 if alone else 0
        if not self.formed or self.unfit >= self.retry_policy.max_attempts:
            raise original(error, f"{self.role}.ready") from error
        if worker.state is not State.DRAINING and (node := self._node(worker)):
            self.avoided.add(node)
        self.remove(worker, "start", reason(error))

    def _node(self, worker: Worker) -> str:
        return worker.place.node if worker.place else nodes.of(worker.handle)

    def _name(self, worker: Worker) -> str:
        return f"{worker.name} on {nodes.address(self._node(worker))}"

    def remove(self, worker: Worker, why: str, words: str = "") -> None:
        """The worker is gone: its tasks go to others. words: why, for people. Raises BudgetError
        when that was once too often; RankGroupError for one that was lent."""
        if worker.state is State.GONE:
            return
        if self.lent and worker in self.lent:
            return self.lent.lose(worker, why, words or CAUSE_WORDS.get(why, why))
        draining = worker.state is State.DRAINING
        failed = not draining and why != "scaled"
        why = worker.leaving if draining else why
        gone = why
        if failed:
            words = words or CAUSE_WORDS.get(why, why)
            gone = f"{self._name(worker)} {VERBS.get(why, 'died')} ({words})"
        worker.leave()
        self._workers.remove(worker)
        ray.kill(worker.handle)
        self.budget.count(why, worker.place.node if worker.place else "")
        task = self.dispatcher.withdraw(worker, blame=why not in NOT_COUNTED)
        self.budget.check(gone, why, task)
        if failed:
            self.budget.announce(gone, why)

    def stop(self) -> None:
        """End all."""
        for worker in self:
            worker.leave()
            ray.kill(worker.handle)
        self._workers = []
        self.desired = 0
