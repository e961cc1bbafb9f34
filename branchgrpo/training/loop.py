"""The training loop: grow trees and score their leaves, update, publish, and what is due after
that."""

from __future__ import annotations

from time import perf_counter

from branchgrpo.report.metrics import of_iteration
from branchgrpo.training.gates import publish
from branchgrpo.training.recovery import Recovery
from branchgrpo.training.run import Run
from branchgrpo.training.state import TrainState


def train(run: Run) -> TrainState:
    """The whole run. After a fault the loop asks again what comes next, by the state."""
    state = TrainState()
    recovery = Recovery(run, state)
    while not state.complete:
        with recovery:
            if run.before is None:
                run.measure_untrained(state)
            elif not state.begun:
                run.begin(state)
            elif not (state.stopped_by and state.concluded):
                with run.stages("training"):
                    step(run, state)
            else:
                run.finish(state)
    return state


def step(run: Run, state: TrainState) -> None:
    """One iteration."""
    run.phase("training")
    if state.concluded:
        update(run, state)
    for hook in run.hooks:  # end, evaluate, checkpoint, log, regroup
        if hook.name not in state.done and hook.due(run, state):
            hook(run, state)
            state.done.add(hook.name)
    state.concluded, run.trained = True, None


def update(run: Run, state: TrainState) -> None:
    """One update that reaches the rollout workers. Until then it may be made again."""
    began = perf_counter()
    pending = run.ahead.next(state)  # trees, scored as they finished
    grown, state.updating = perf_counter(), True
    started = run.service.learners.start_update(  # credit, pruning and gradient on the ranks
        pending.request, size=pending.batch.edges(pending.plan)
    )
    run.ahead.fill(state)  # the next prompts are encoded meanwhile; async: the next trees grow
    stats = started.result()
    updated = perf_counter()
    encoding = run.ahead.settle()
    version = publish(run, state, stats)  # confirmed by digest
    ended = perf_counter()
    state.advance(version, seconds=ended - began)
    state.record |= of_iteration(
        pending.plan,
        pending.batch,
        stats,
        credit=run.config.credit,
        driver_bytes=run.service.driver_bytes(),
    )
    state.record |= run.method.observe(pending.plan, pending.batch.leaf_rewards())
    state.record |= {
        "time/encode": pending.batch.seconds["encode"] + encoding,
        "time/update": updated - grown,
        "time/publish": ended - updated - encoding,
        "time/iteration": ended - began,
        "time/training": state.seconds,
        "tree/staleness": float(stats.version - 1 - pending.version),
        "tree/stale_dropped": float(run.ahead.take_dropped()),
    }
    run.trained = pending  # until the hooks have run
