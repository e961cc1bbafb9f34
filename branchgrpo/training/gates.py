"""Start-up gates: do the rollout workers really get what the learner trained?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from branchgrpo.errors import GateError
from branchgrpo.types import F32, StepStats

if TYPE_CHECKING:
    from branchgrpo.training.run import Run
    from branchgrpo.training.state import TrainState


def publish(run: Run, state: TrainState, stats: StepStats) -> int:
    """Publish the learner's weights; returns their version. Once, after the first step that changed
    anything, check that the workers changed with it. Raises GateError."""
    service = run.service
    wanted = run.config.gates.enabled and "fingerprint_difference" not in state.gates
    before = service.rollouts.fingerprints() if wanted and stats.optimiser_steps else []
    version = service.publish(run.config.grown_with)
    if not np.isnan(stats.on_policy_deviation):
        state.gates["on_policy_deviation"] = stats.on_policy_deviation
    if before:
        state.gates["fingerprint_difference"] = difference(run, before[0])
    return version


def difference(run: Run, before: F32) -> float:
    """The largest between the learner's velocity and a worker's, both at one fixed input. before:
    the velocity that all workers had. Raises GateError."""
    learner = run.service.learners.fingerprint()
    bound = run.config.gates.fingerprint_tolerance
    largest = 0.0
    for worker, new in enumerate(run.service.rollouts.fingerprints()):
        apart = float(np.abs(new - learner).max())
        largest = max(largest, apart)
        if float(np.abs(new - before).max()) == 0.0:
            raise GateError(
                f"gate weights arrive: rollout-{worker} computes the same velocity as "
                "before the first publish"
            )
        if not apart <= bound:
            raise GateError(
                f"gate weights arrive: expected rollout-{worker}'s velocity within {bound:g} "
                f"of the learner's, got {apart:.3g}"
            )
    return largest
