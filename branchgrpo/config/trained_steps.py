"""Do a method's random steps and the model's weights that train meet?"""

from __future__ import annotations

from branchgrpo.config.schema import Config
from branchgrpo.errors import UserError

OPEN_END = 1000
"""Iterations that are looked at of a run that ends by time alone."""


def check(config: Config) -> None:
    """Raise UserError where in no iteration a random step is of weights that train. Reads the
    files that the schedule is made from."""
    schedule = config.schedule()
    if not (frozen_by := config.model.frozen_by()) or config.loss.process == "forward":
        return  # a loss on leaves needs no random step
    method, random = config.method.start(schedule.steps, config.run.seed), set[int]()
    for iteration in range(config.run.iterations or OPEN_END):
        plan = config.plan(method, iteration, schedule)
        if any(plan.trainable):
            return
        random |= {step for step in range(plan.steps) if plan.stochastic[step]}
    frozen = config.model.frozen_steps(schedule.levels)
    trained = [step for step, still in enumerate(frozen) if not still]
    raise UserError(
        f"{frozen_by}: expected some of the method's random steps among those of the weights that "
        f"train, {_steps(trained)}, got {_steps(sorted(random))}: nothing would be trained"
    )


def _steps(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) or "none"
