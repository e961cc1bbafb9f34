"""Do the steps that a run trains on and the model's weights that train meet?"""

from __future__ import annotations

from branchgrpo.config.schema import Config
from branchgrpo.errors import UserError

OPEN_END = 1000
"""Iterations that are looked at of a run that ends by time alone."""


def check(config: Config) -> None:
    """Raise UserError where in no iteration a step that is trained on, a random one or, of losses
    on leaves, any, is of weights that train. Reads the files that the schedule is made from."""
    schedule = config.schedule()
    if not (frozen_by := config.model.frozen_by()):
        return
    method, seen = config.method.start(schedule.steps, config.run.seed), set[int]()
    leaves = config.loss.process == "forward"  # which needs no random step
    for iteration in range(config.run.iterations or OPEN_END):
        plan = config.plan(method, iteration, schedule)
        wanted = {step for step in range(plan.steps) if leaves or plan.stochastic[step]}
        if not all(plan.frozen[step] for step in wanted):
            return
        seen |= wanted
    frozen = config.model.frozen_steps(schedule.levels)
    trained = [step for step, still in enumerate(frozen) if not still]
    raise UserError(
        f"{frozen_by}: expected some of the steps that are trained on (the method's random ones; "
        "of losses on leaves all) among those of the weights that train, "
        f"{_steps(trained)}, got {_steps(sorted(seen))}: nothing would be trained"
    )


def _steps(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) or "none"
