"""One training run: its parts, and what is done with it beside the updates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

from branchgrpo.algo.methods.base import MethodRun
from branchgrpo.config.schema import Config
from branchgrpo.data.records import prompts_of
from branchgrpo.errors import UserError
from branchgrpo.report.contact_sheet import KEPT
from branchgrpo.report.looks import Looks
from branchgrpo.report.shown import captions
from branchgrpo.rollout.collect import RolloutCollector
from branchgrpo.runs.identity import Identity, identity
from branchgrpo.runs.lease import Lease
from branchgrpo.service import Display, Log, Service
from branchgrpo.training import alarms, look
from branchgrpo.training.ahead import Ahead, PendingRollout
from branchgrpo.training.diversity import Diversity
from branchgrpo.training.evaluate import Evaluator, Scores
from branchgrpo.training.keeper import Keeper
from branchgrpo.training.saving import Saving
from branchgrpo.training.stages import Stages
from branchgrpo.training.state import TrainState
from branchgrpo.training.trees import TreePictures
from branchgrpo.types import U8


class Hook(Protocol):
    """Something that is done after an update."""

    @property
    def name(self) -> str:
        """Told from other hooks by it."""

    def due(self, run: Run, state: TrainState) -> bool:
        """Is it to be done after the present iteration?"""

    def __call__(self, run: Run, state: TrainState) -> None:
        """Do it. A fault may end it, and it is then called again."""


class Run:
    """Everything a training run works with."""

    def __init__(
        self,
        config: Config,
        service: Service,
        *,
        name: str,
        log: Log,
        display: Display,
        hooks: Sequence[Hook],
        checkpoints: str = "",
        weights: Path | None = None,
        interrupted: Callable[[], bool] = lambda: False,
        keeper: Keeper | None = None,
        looks: Looks | None = None,
        before: Scores | None = None,
        diversity: Diversity | None = None,
        origin: str = "",
        resumed: bool = False,
        lease: Lease | None = None,
    ):
        """name: of the run, part of its trees' keys. checkpoints, weights: where they go.
        interrupted: asked between iterations. looks: keeps what is looked at on the way. before,
        diversity: of the untrained model, where they are known. origin: a checkpoint that a new run
        begins at. resumed: it goes on from its newest one. lease: is told what the run spends."""
        self.config = config
        self.service = service
        self.log = log
        self.display = display
        self.hooks = hooks
        self.checkpoints = checkpoints
        self.weights = weights
        self.interrupted = interrupted
        self.keeper = keeper
        self.looks = looks
        self.trained: PendingRollout | None = None  # what the present iteration has trained on
        self.before = before
        self.origin = origin
        self.resumed = resumed
        self.lease = lease
        self.after: Scores = {}
        self.diversity: dict[str, Diversity] = {"before": diversity or {}, "after": {}}
        self.hacked: tuple[str, ...] = ()  # scores that gave the alarm at the last check
        self.told: dict[str, str] = {}  # alarms that stand, in words, by their figure
        self.inflated = False  # the alarm of ‖v‖, as it was measured last
        self.reissued = 0  # tasks, under this driver
        self.earlier: Mapping[str, int] = {}  # the same and recoveries, under drivers before it
        self.stages = Stages(lease.earlier["seconds"] if lease else None)
        if lease:
            lease.seconds = self.stages.own
            service.earlier.update(lease.earlier["restarts"])
            self.earlier = {key: lease.earlier[key] for key in ("reissued", "recoveries")}
        collector = RolloutCollector(config, service, name)
        self.ahead = Ahead(config, collector, display)
        self.evaluator = Evaluator(config, service, collector)
        self.saving = Saving(config.checkpoint, service, display, checkpoints)
        self.trees = TreePictures(collector, self.ahead, keeper)
        self._phase = ""
        self._untrained: U8 | None = None  # pictures of the check before training, to be shown

    @property
    def method(self) -> MethodRun:
        """The method, with what it has learned on the way."""
        return self.ahead.method

    @cached_property
    def identity(self) -> Identity:
        """What the run is."""
        return identity(self.config)

    def phase(self, text: str) -> None:
        """Tell what is being done, when that changes."""
        if text != self._phase:
            self._phase = text
            self.display.phase(text)
            self.service.report({"phase": text})

    # before training

    def measure_untrained(self, state: TrainState) -> None:
        """The held-out check before training."""
        prompts = self.config.evaluation.prompts
        self.phase(f"held-out check before training: {prompts} prompts")
        scores, pixels = self._measured(state, "before")
        self._keep("before", scores, pixels, "before training")
        self.trees.draw(state)
        self.before, self._untrained = scores, pixels

    def begin(self, state: TrainState) -> None:
        """Take over the run: drivers before this one are fenced off. Go on from its newest
        checkpoint, or from the checkpoint `origin`, if that is wanted."""
        assert self.before is not None
        start = self.evaluator.between(self.before)
        if not ((self.resumed or self.origin) and self.restore(state)):
            self.saving.claim()
            self._rewind(-1)
            self.log.write(0, start)
            self.look(state, self.before, self._untrained)
        self._untrained = None
        self.display.update(0, start)
        state.begun = True

    # checkpoints

    def save(self, state: TrainState, wait: bool = True) -> None:
        """Write a checkpoint, or begin to; see `Saving.save`."""
        method = self.method.state()
        driver = state.kept() | {"is": self.identity} | ({"method": method} if method else {})
        self.saving.save(state, driver, wait)

    def restore(self, state: TrainState) -> bool:
        """Back to the newest checkpoint; drivers before this one are fenced off. Returns whether
        there was one: if not, the run begins again."""
        self.saving.claim()
        restored = self.service.learners.restore(self.checkpoints, self.origin)
        kept = restored.driver or {}
        for damaged in restored.damaged:
            self.display.note(f"checkpoint passed over: {damaged}")
        try:
            self.ahead.begin_again(kept.get("method"))
        except ValueError as error:
            raise UserError(f"checkpoint: state.json: driver.method: {error}") from error
        state.go_back(kept)
        self._rewind(state.iteration)
        state.stopped_by = state.stopped_by or self._ended(state, kept.get("stopped_by", ""))
        state.version = self.service.publish(self.config.grown_with)
        if restored.driver is None:
            return False
        self.display.note(f"going on from the checkpoint of iteration {state.iteration}")
        return True

    def _ended(self, state: TrainState, before: str) -> str:
        """Why there is nothing left to train, as a checkpoint has it; empty: there is. before: why
        training ended when it was written: a driver may have died between that and the summary. A
        figure counts only where it still ends the run."""
        options = self.config.run
        if 0 < options.iterations <= state.iteration:
            return "iterations"
        if not self.resumed:
            return ""
        if before == "max_minutes" and 0 < 60 * options.max_minutes < state.seconds:
            return before
        known = [f"stop_when: {condition.strip()}" for condition in options.stop_when]
        return before if before in known else ""

    # after training

    def finish(self, state: TrainState) -> None:
        """The last checkpoint, the held-out check, and the weights."""
        if state.writing:
            self.saving.ask(state, wait=True)
        if self.config.checkpoint.kept and state.saved != state.iteration:
            self.save(state)
        self.phase("held-out check after training")
        scores, pixels = self._measured(state, "after")
        if self.config.run.export != "none" and self.weights:
            self.phase("writing weights")
            self.service.learners.export(self.weights)
        self.after = scores
        last = {"time/training": state.seconds, "checkpoint/iteration": float(state.saved)}
        last |= self.hacking(scores)
        self.log.write(state.iteration, self.evaluator.between(scores) | last)
        self._keep("after", scores, pixels, f"after {state.iteration} iterations")
        self.look(state, scores, pixels)
        state.complete = True

    def hacking(self, scores: Scores) -> dict[str, float]:
        """The figure of the alarm, which is said when it changes: {} where nothing is measured
        beside what is trained on. scores: of the first held-out prompts."""
        options, before = self.config.evaluation, self.before or {}
        measured = alarms.measured(options.rewards, before)
        if not (options.alarm and measured):
            return {}
        total, fell = alarms.hacked(before, scores, measured, options.alarm)
        hacked = tuple(one.score for one in fell)
        if hacked and hacked != self.hacked:
            self.display.note(f"alarm, reward hacking? {alarms.words(total, fell)}")
        self.hacked = hacked
        self.told = {alarms.FIGURE: alarms.words(total, fell)} if hacked else {}
        return {alarms.FIGURE: float(len(hacked))}

    def look(self, state: TrainState, scores: Scores, pixels: U8 | None) -> None:
        """Keep what a check has seen, beside its means: scores [P] of the first held-out prompts,
        and pictures [n, F, H, W, 3] of the first of these."""
        self.trees.draw(state)
        if self.looks:
            count = self.config.evaluation.prompts_between
            self.looks.add(state.iteration, look.of_check(scores, count, self.told))
        self._show(state.iteration, scores, pixels)
        # those of the beginning and the end are in samples/before.npz and after.npz
        between = state.iteration and not state.stopped_by
        if self.looks and pixels is not None and between:
            prompts = prompts_of(self.evaluator.held_out[: len(pixels)])
            values = scores[self.config.metric][: len(pixels)]
            self.looks.held_out(state.iteration, pixels, prompts, values)

    def _rewind(self, iteration: int) -> None:
        self.log.rewind(iteration)
        if self.looks:
            self.looks.rewind(iteration)

    def _measured(self, state: TrainState, when: str) -> tuple[Scores, U8 | None]:
        """The whole held-out check, before or after training."""
        options = self.config.evaluation
        save = partial(self.keeper.save, when) if self.keeper else None
        count = min(options.pictures, options.prompts)
        with self.stages(f"evaluation_{when}"):
            found = self.evaluator.scores(state.version, options.prompts, count, save)
            if options.diversity:
                self.diversity[when] = self.evaluator.diversity(state.version)
        return found

    def _show(self, iteration: int, scores: Scores, pixels: U8 | None) -> None:
        """Pictures of a held-out check, [n, F, H, W, 3] of the first n prompts, to the log."""
        if pixels is None:
            return
        few, metric = pixels[:KEPT], self.config.metric
        prompts = prompts_of(self.evaluator.held_out[: len(few)])
        told = captions(prompts, scores[metric][: len(few)], metric)
        self.log.pictures(iteration, "held_out", few, told)

    def _keep(self, when: str, scores: Scores, pixels: U8 | None, title: str) -> None:
        if self.keeper:
            self.keeper.keep(
                when,
                scores=scores,
                diversity=self.diversity[when],
                pixels=pixels,
                samples=self.evaluator.held_out,
                title=title,
            )
