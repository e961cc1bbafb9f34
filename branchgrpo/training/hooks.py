"""What is done after an update, in this order; each once an iteration, whatever fails meanwhile."""

from __future__ import annotations

import numpy as np

from branchgrpo.config import conditions
from branchgrpo.pages.written import Reports
from branchgrpo.report import contact_sheet
from branchgrpo.report.shown import captions
from branchgrpo.training import alarms, look
from branchgrpo.training.run import Hook, Run
from branchgrpo.training.state import TrainState


class Workers:
    """Follow requests for more or fewer workers, and count them."""

    name = "workers"

    def due(self, run: Run, state: TrainState) -> bool:
        return True

    def __call__(self, run: Run, state: TrainState) -> None:
        counts = run.service.follow()
        run.reissued = counts.get("reissued", 0)
        counts = counts | {"recoveries": state.recoveries}
        state.record |= {
            f"service/{name}": float(count + run.earlier.get(name, 0))
            for name, count in counts.items()
        }


class KeepLease:
    """Tell the run folder what the run has spent. Raises StaleFence when another driver has taken
    it over."""

    name = "lease"

    def due(self, run: Run, state: TrainState) -> bool:
        return run.lease is not None

    def __call__(self, run: Run, state: TrainState) -> None:
        assert run.lease
        run.lease.put(
            restarts=run.service.restarts(), reissued=run.reissued, recoveries=state.recoveries
        )


class End:
    """Does training end here?"""

    name = "end"

    def due(self, run: Run, state: TrainState) -> bool:
        return True

    def __call__(self, run: Run, state: TrainState) -> None:
        options = run.config.run
        if state.iteration == options.iterations:
            state.stopped_by = "iterations"
        elif options.max_minutes and state.seconds > 60 * options.max_minutes:
            state.stopped_by = "max_minutes"
        elif run.interrupted() or run.service.stopping():
            state.stopped_by = "interrupted"


class Leaves:
    """At a held-out check, and when training ends: the trees that were trained on are looked at.
    Ahead of the check, so that their pictures go before others come."""

    name = "leaves"

    def due(self, run: Run, state: TrainState) -> bool:
        return bool(state.stopped_by) or HeldOut().due(run, state)

    def __call__(self, run: Run, state: TrainState) -> None:
        if run.trained is None:  # after a fault: they are gone
            return
        iteration, plan, batch = state.iteration, run.trained.plan, run.trained.batch
        values, line = look.of_batch(plan, batch, run.config.credit, run.trained.iteration)
        best, worst = look.best_and_worst(batch)
        shown = look.lines(batch, run.trained.samples, [*best, *worst])
        pixels = look.pictures(run.service.rollouts, plan, batch, [*best, *worst])
        prompts = [one["prompt"] for one in shown]
        rewards = np.array([one["reward"] for one in shown], np.float32)
        told = captions(prompts, rewards, "reward")
        run.log.histograms(iteration, values)
        run.log.pictures(iteration, "leaves/best", pixels[: len(best)], told[: len(best)])
        run.log.pictures(iteration, "leaves/worst", pixels[len(best) :], told[len(best) :])
        if run.looks:
            run.looks.leaves(iteration, pixels, prompts, rewards)
            run.looks.add(iteration, line | {"leaves": shown})
        run.trained = None
        run.service.driver_bytes()  # these messages are not the training iteration's


class HeldOut:
    """The held-out check on the way; after the last iteration there is the whole one."""

    name = "held-out"

    def due(self, run: Run, state: TrainState) -> bool:
        options = run.config.evaluation
        return not state.stopped_by and state.passed(options.every, options.every_seconds)

    def __call__(self, run: Run, state: TrainState) -> None:
        options = run.config.evaluation
        count = min(options.prompts_between, options.prompts)
        shown = min(options.pictures, contact_sheet.KEPT, count)
        scores, pixels = run.evaluator.scores(state.version, count, shown)
        state.record |= {f"held_out/{name}": float(one.mean()) for name, one in scores.items()}
        state.record |= run.hacking(scores)
        run.look(state, scores, pixels)
        run.service.driver_bytes()  # nor are its pictures


class VelocityNorm:
    """Where ‖v‖ was measured: is it far from what it was when the run began? It is said when that
    changes."""

    name = "velocity-norm"

    def due(self, run: Run, state: TrainState) -> bool:
        return bool(run.config.evaluation.norm_alarm) and alarms.NORM in state.record

    def __call__(self, run: Run, state: TrainState) -> None:
        bound, ratio = run.config.evaluation.norm_alarm, state.record[alarms.NORM]
        inflated = alarms.inflated(ratio, bound)
        if inflated and not run.inflated:
            run.display.note(
                f"alarm, reward hacking? the velocity's norm is {ratio:.3g} times what it was when "
                f"the run began, more than {bound:g} away from 1"
            )
        run.inflated = inflated
        state.record[alarms.NORM_FIGURE] = float(inflated)


class StopWhen:
    """Does a figure of the iteration, those of a held-out check among them, end training?"""

    name = "stop-when"

    def due(self, run: Run, state: TrainState) -> bool:
        return bool(run.config.run.stop_when) and not state.stopped_by

    def __call__(self, run: Run, state: TrainState) -> None:
        if condition := conditions.met(run.config.run.stop_when, state.record):
            state.stopped_by = f"stop_when: {condition.strip()}"


class Written:
    """What became of a checkpoint that was begun in an iteration before."""

    name = "written"

    def due(self, run: Run, state: TrainState) -> bool:
        return bool(state.writing)

    def __call__(self, run: Run, state: TrainState) -> None:
        run.saving.ask(state, wait=False)


class Checkpoint:
    """A checkpoint by count or time, and when nodes will go; training ends with one anyway. An
    interval that ends while one is being written is passed over."""

    name = "checkpoint"

    def due(self, run: Run, state: TrainState) -> bool:
        options = run.config.checkpoint
        if state.stopped_by or not options.kept:
            return False
        if run.service.leaving():
            return True
        return not state.writing and state.passed(options.every, 60 * options.every_minutes)

    def __call__(self, run: Run, state: TrainState) -> None:
        run.save(state, wait=run.service.regroups())


class Record:
    """The iteration's metrics, for the log, people and whoever watches."""

    name = "record"

    def due(self, run: Run, state: TrainState) -> bool:
        return True

    def __call__(self, run: Run, state: TrainState) -> None:
        state.record["checkpoint/iteration"] = float(state.saved)
        run.log.write(state.iteration, state.record)
        run.display.update(state.iteration, state.record)
        told = {"phase": "training", "iteration": state.iteration, "version": state.version}
        told |= {"planned": run.config.run.iterations, "fence": run.saving.fence}
        run.service.report(told | {"metrics": state.record})


class Page:
    """The run's page, once it has begun and at each check."""

    name = "page"

    def __init__(self, reports: Reports):
        self.reports = reports

    def due(self, run: Run, state: TrainState) -> bool:
        return state.iteration == 1 or HeldOut.name in state.done

    def __call__(self, run: Run, state: TrainState) -> None:
        self.reports.write()


class Regroup:
    """The learners move, or change in number, where that is wanted: at a checkpoint."""

    name = "regroup"

    def due(self, run: Run, state: TrainState) -> bool:
        return "checkpoint" in state.done and state.saved == state.iteration

    def __call__(self, run: Run, state: TrainState) -> None:
        if why := run.service.regroup():
            run.display.note(f"learners formed anew: {why}")
            run.restore(state)


HOOKS: tuple[Hook, ...] = (
    Workers(),
    KeepLease(),
    End(),
    Leaves(),
    HeldOut(),
    VelocityNorm(),
    StopWhen(),
    Written(),
    Checkpoint(),
    Record(),
    Regroup(),
)
