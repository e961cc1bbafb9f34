"""The driver's loop: plan → grow trees → score leaves → update → publish → log, and what survives
failures of machines."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from time import perf_counter, time
from typing import TypeVar

import numpy as np

from branchgrpo.algo.methods.adaptive import SplitChooser
from branchgrpo.algo.methods.branch import BranchMethod
from branchgrpo.checkpoint.store import Store
from branchgrpo.config.schema import Config
from branchgrpo.data import prompts
from branchgrpo.errors import GateError, StaleFence, UserError
from branchgrpo.report.metrics import of_iteration, overlooked
from branchgrpo.rollout.collect import RolloutBatch, RolloutCollector
from branchgrpo.runs.identity import Identity, identity
from branchgrpo.service import CheckpointRequest, Display, Log, Service, UpdateRequest
from branchgrpo.train.evaluate import Evaluator, Scores
from branchgrpo.types import F32, U8, BranchPlan, StepStats

T = TypeVar("T")


@dataclass
class Outcome:
    """What a training loop reached."""

    iterations: int = 0
    version: int = 0
    seconds: float = 0.0  # spent in iterations
    stopped_by: str = "iterations"  # or "max_minutes", "interrupted"
    gates: dict[str, float] = field(default_factory=dict)  # what each start-up gate measured


@dataclass
class Grown:
    """An iteration's trees, not trained on yet."""

    iteration: int
    version: int  # of the weights that grew them
    plan: BranchPlan
    batch: RolloutBatch
    prompts: int


@dataclass
class Done:
    """An update that the workers have."""

    iteration: int
    seconds: float
    values: dict[str, float]
    ending: str | None = None  # why training ends after it; None = not asked yet
    told: bool = False  # its metrics are written


class Trainer:
    """Trains one config on one service. `interrupted` is asked between iterations; checkpoints go
    to the store `where`."""

    def __init__(
        self,
        config: Config,
        service: Service,
        run: str,
        display: Display,
        interrupted: Callable[[], bool],
        where: str,
    ):
        self.config = config
        self.service = service
        self.display = display
        self.interrupted = interrupted
        self.train_prompts, _ = prompts.lists(config)
        self.collector = RolloutCollector(config, service, run)
        self.evaluator = Evaluator(config, service, self.collector)
        self.outcome = Outcome()
        self.told: set[str] = set()
        self.method, self.schedule = config.method, config.schedule()
        self.chooser: SplitChooser | None = None
        if isinstance(config.method, BranchMethod) and config.method.adapt_every:
            self.begun_with = config.method
            self.chooser = SplitChooser(config.method, config.sampling.steps, config.run.seed)
        self.ahead: deque[Grown] = deque()
        # stale: trees dropped since the last metrics
        self.stale = self.recoveries = self.reissued = self.saved = 0
        # recoveries and reissued tasks under drivers before this one
        self.earlier: Mapping[str, int] = {}
        self.where = where
        self.origin = ""
        self.fence = 0
        self.updating = False  # an update was begun that the workers have not got

    def train(self, log: Log) -> Outcome:
        """The main loop, until the last iteration, the time limit or an interruption."""
        outcome = self.outcome
        ending = ""
        reached = -1
        # a failure at the last checkpoint may take the run back
        while reached != outcome.iterations:
            ending = "iterations" if 0 < self.config.run.iterations <= outcome.iterations else ""
            while not ending:
                done = self.surviving(self._iteration, log)
                ending = self.surviving(lambda done=done: self._conclude(done, log), log)  # type: ignore[misc]
            reached = outcome.iterations
            if self.config.checkpoint.kept:
                self.surviving(self.save, log)
        outcome.stopped_by = ending
        return outcome

    def surviving(self, work: Callable[[], T], log: Log) -> T:
        """What `work` gives. When machines fail, the service recovers, the run goes back to its
        newest checkpoint if it must, and `work` begins again."""
        failure: Exception | None = None
        while True:
            try:
                if failure:
                    self._recover(failure, log)
                    failure = None
                return work()
            except self.service.faults as error:
                failure = error

    def _iteration(self) -> Done:
        """One update."""
        outcome, started = self.outcome, perf_counter()
        grown = self._next()
        self._tell(grown)
        ready = perf_counter()
        plan = grown.plan
        batch = grown.batch
        self.updating = True
        request = UpdateRequest(
            plan=plan, iteration=grown.iteration, segments=batch.segments, scores=batch.scores
        )
        update = self.service.learners.start_update(
            request, batch.conditioning, size=batch.edges(plan)
        )
        self._grow_ahead()
        stats = update.result()
        updated = perf_counter()
        self._publish(stats)
        outcome.iterations += 1
        self.updating = False
        ended = perf_counter()
        outcome.seconds += ended - started
        times = {
            "time/update": updated - ready,
            "time/publish": ended - updated,
            "time/iteration": ended - started,
            "time/training": outcome.seconds,
        }
        values = (
            of_iteration(batch, stats, self.service.driver_bytes())
            | times
            | self._adapt(grown.plan, batch)
        )
        values |= {
            "tree/staleness": float(stats.version - 1 - grown.version),
            "tree/stale_dropped": self.stale,
            "service/recoveries": self.recoveries + self.earlier.get("recoveries", 0),
        }
        self.stale = 0
        counts = self.service.follow()
        self.reissued = counts.get("reissued", 0)
        values |= {
            f"service/{name}": float(count + self.earlier.get(name, 0))
            for name, count in counts.items()
        }
        return Done(outcome.iterations, ended - started, values)

    def _conclude(self, done: Done, log: Log) -> str:
        """What comes after an update: checks, a checkpoint, metrics. Returns why training ends
        here, or nothing. After a failure it goes on where it was, unless the run has gone back
        meanwhile."""
        outcome, values = self.outcome, done.values
        if done.iteration != outcome.iterations:
            return ""
        done.ending = self._ending() if done.ending is None else done.ending
        due = (
            not done.ending
            and self.config.checkpoint.kept
            and (self.service.leaving() or self._due(done.seconds))
        )
        if not done.told:
            # after the last iteration there is the whole check, and a checkpoint
            if not done.ending:
                values |= self._check(done.seconds)
            if due:
                self.save()
            values["checkpoint/iteration"] = self.saved
            log.write(outcome.iterations, values)
            done.told = True
            self.display.update(outcome.iterations, values)
            state = {
                "phase": "training",
                "iteration": outcome.iterations,
                "planned": self.config.run.iterations,
            }
            self.service.report(
                state | {"version": outcome.version, "fence": self.fence, "metrics": values}
            )
        if due and self.saved == outcome.iterations and (why := self.service.regroup()):
            self.display.note(f"learners formed anew: {why}")
            self._go_back(log)
        return done.ending

    # growing

    def _next(self) -> Grown:
        """The next iteration's trees: grown ahead, unless they are too old by now, or grown now."""
        while self.ahead:
            grown = self.ahead.popleft()
            if self.outcome.version - grown.version <= self.config.async_.max_staleness:
                return grown
            self.stale += 1
        return self._grow(self.outcome.iterations)

    def _grow_ahead(self) -> None:
        """With async.max_staleness: grow while the learner updates, as far ahead as trees may be
        old."""
        last = self.config.run.iterations or np.inf
        while (
            len(self.ahead) < self.config.async_.max_staleness
            and (iteration := self.outcome.iterations + 1 + len(self.ahead)) < last
        ):
            self.ahead.append(self._grow(iteration))

    def _grow(self, iteration: int) -> Grown:
        config, version = self.config, self.outcome.version
        plan = self.method.plan(iteration, self.schedule, config.run.seed)
        chosen = prompts.deal(
            len(self.train_prompts), config.rollout.prompts, iteration, config.run.seed
        )
        texts = [self.train_prompts[index] for index in chosen]
        batch = self.collector.collect(
            plan,
            iteration=iteration,
            version=version,
            prompts=chosen,
            texts=texts,
            trees=config.rollout.trees_per_prompt * plan.chains,
        )
        return Grown(
            iteration=iteration, version=version, plan=plan, batch=batch, prompts=len(texts)
        )

    def _tell(self, grown: Grown) -> None:
        """Say once what does not end a run, and is easily overlooked: long prompts, dropped groups.
        Each iteration's count is in the metrics."""
        for kind, text in overlooked(grown.batch, grown.prompts).items():
            if kind not in self.told:
                self.told.add(kind)
                self.display.note(text)

    # surviving

    def begin(self, log: Log | None = None, origin: str = "") -> bool:
        """Take over the run: writers of earlier fences are fenced off. With a log, go on from the
        newest checkpoint, if there is one, or from the checkpoint `origin`; returns whether there
        was."""
        self.origin = origin
        if log:
            return self._go_back(log)
        self._claim()
        return False

    def _claim(self) -> None:
        if self.config.checkpoint.kept:
            self.fence = Store(self.where, self.config.checkpoint.keep).claim()

    def save(self) -> None:
        """Write a checkpoint. One that cannot be written is said; training goes on. Raises
        StaleFence when another program has taken the run over."""
        outcome = self.outcome
        driver = {
            "iteration": outcome.iterations,
            "seconds": outcome.seconds,
            "gates": outcome.gates,
        }
        driver |= {"is": self.identity} | (
            {"chooser": self.chooser.state()} if self.chooser else {}
        )
        try:
            found = self.service.learners.checkpoint(
                CheckpointRequest(
                    where=self.where,
                    iteration=outcome.iterations,
                    fence=self.fence,
                    driver=driver,
                )
            )
        except StaleFence:
            self.service.report(
                {"phase": "taken over by another program", "metrics": {"checkpoint/rejected": 1.0}}
            )
            raise
        if found.failed:
            self.display.note(
                f"checkpoint of iteration {outcome.iterations} could not be written: "
                f"{found.failed}; training goes on"
            )
        else:
            self.saved = outcome.iterations
            self.service.report(
                {"checkpoint": {"iteration": self.saved, "path": self.where, "time": time()}}
            )

    @cached_property
    def identity(self) -> Identity:
        """What the run is."""
        return identity(self.config)

    def _recover(self, error: Exception, log: Log) -> None:
        self.recoveries += 1
        self.ahead.clear()
        self.display.note(f"recovering: {type(error).__name__}: {error}")
        # an update that was begun must not be made twice
        if self.service.recover(error) or self.updating:
            self.updating = False
            self._go_back(log)
        # workers may hold other weights, such as those of a check, or what was published last is
        # gone
        else:
            self.outcome.version = self.service.publish()

    def _go_back(self, log: Log) -> bool:
        """To the newest checkpoint; writers of earlier fences are fenced off. Returns whether there
        was one."""
        self._claim()
        return self._restore(log)

    def _restore(self, log: Log) -> bool:
        restored = self.service.learners.restore(self.where, self.origin)
        state = restored.driver or {}
        for damaged in restored.damaged:
            self.display.note(f"checkpoint passed over: {damaged}")
        outcome, found = self.outcome, "iteration" in state
        outcome.iterations, outcome.seconds = state.get("iteration", 0), state.get("seconds", 0.0)
        outcome.gates = dict(state.get("gates", {}))
        self.saved = outcome.iterations
        if self.chooser:
            self.chooser = SplitChooser(
                self.begun_with, self.config.sampling.steps, self.config.run.seed
            )
            if state.get("chooser"):
                try:
                    self.chooser.load(state["chooser"])
                except ValueError as error:
                    raise UserError(f"checkpoint: state.json: driver.chooser: {error}") from error
            self.method = self.chooser.method
        log.rewind(outcome.iterations)
        outcome.version = self.service.publish()
        if found:
            self.display.note(f"going on from the checkpoint of iteration {outcome.iterations}")
        return found

    def _due(self, seconds: float) -> bool:
        """A checkpoint is due after an iteration that took `seconds`."""
        options = self.config.checkpoint
        total = self.outcome.seconds
        period = 60 * self.config.checkpoint.every_minutes
        by_count = options.every > 0 and self.outcome.iterations % options.every == 0
        return by_count or (period > 0 and total // period > (total - seconds) // period)

    # between iterations

    def _ending(self) -> str:
        """Why training ends after the present iteration; empty when it goes on."""
        run, outcome = self.config.run, self.outcome
        if outcome.iterations == run.iterations:
            return "iterations"
        if run.max_minutes and outcome.seconds > 60 * run.max_minutes:
            return "max_minutes"
        return "interrupted" if self.interrupted() or self.service.stopping() else ""

    def evaluate(self, count: int, pictures: int = 0) -> tuple[Scores, U8 | None]:
        """Scores [count] of held-out prompts and pixels of the first ones, see Evaluator."""
        return self.evaluator.scores(self.outcome.version, count, pictures)

    def _adapt(self, plan: BranchPlan, batch: RolloutBatch) -> dict[str, float]:
        if not self.chooser:
            return {}
        self.chooser.observe(plan, np.stack([batch.rewards[key] for key in sorted(batch.rewards)]))
        self.method = self.chooser.method
        return {f"splits/{index}": float(step) for index, step in enumerate(plan.splits)}

    def _check(self, seconds: float) -> dict[str, float]:
        """The held-out check, when it is due after an iteration that took `seconds`."""
        options = self.config.evaluation
        iteration = self.outcome.iterations
        total = self.outcome.seconds
        due = options.every > 0 and iteration % options.every == 0
        due |= (
            options.every_seconds > 0
            and total // options.every_seconds > (total - seconds) // options.every_seconds
        )
        if not due:
            return {}
        scores, _ = self.evaluate(min(options.prompts_between, options.prompts))
        return {f"held_out/{name}": float(values.mean()) for name, values in scores.items()}

    def _publish(self, stats: StepStats) -> None:
        """Publish, and once, after the first step that changed anything, check that the workers
        changed with it."""
        gate = (
            self.config.gates.enabled
            and "fingerprint_difference" not in self.outcome.gates
            and stats.optimiser_steps > 0
        )
        before = self.service.rollouts.fingerprints() if gate else []
        self.outcome.version = self.service.publish()
        if not np.isnan(stats.on_policy_deviation):
            self.outcome.gates["on_policy_deviation"] = stats.on_policy_deviation
        if before:
            self._fingerprint_gate(before[0])

    def _fingerprint_gate(self, before: F32) -> None:
        """before: the velocity that all workers had, see actors.rollout.fingerprint."""
        learner = self.service.learners.fingerprint()
        bound = self.config.gates.fingerprint_tolerance
        for worker, new in enumerate(self.service.rollouts.fingerprints()):
            difference = float(np.abs(new - learner).max())
            change = float(np.abs(new - before).max())
            self.outcome.gates["fingerprint_difference"] = max(
                difference, self.outcome.gates.get("fingerprint_difference", 0.0)
            )
            if change == 0.0:
                raise GateError(
                    f"gate weights arrive: rollout-{worker} computes the same velocity as "
                    "before the first publish"
                )
            if not difference <= bound:
                raise GateError(
                    f"gate weights arrive: expected rollout-{worker}'s velocity within "
                    f"{bound:g} of the learner's, got {difference:.3g}"
                )
