"""Recovery from faults of machines: the only place that knows of them."""

from __future__ import annotations

from types import TracebackType

from branchgrpo.errors import kind_and_line
from branchgrpo.training.run import Run
from branchgrpo.training.state import TrainState


class Recovery:
    """Around a piece of work: a fault ends it, the service recovers, and the run goes back to its
    newest checkpoint if it must. Other errors pass."""

    def __init__(self, run: Run, state: TrainState):
        self.run, self.state = run, state

    def __enter__(self) -> None:
        """Nothing is to be prepared."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        faults = self.run.service.faults
        if not isinstance(error, faults):
            return False
        fault: Exception | None = error
        while fault is not None:
            try:
                self._recover(fault)
                fault = None
            except faults as another:
                fault = another
        return True

    def _recover(self, fault: Exception) -> None:
        run, state = self.run, self.state
        state.recoveries += 1
        run.ahead.clear()
        run.trained = None  # its pictures may be gone
        run.evaluator.clear()
        run.display.note(f"recovering: {kind_and_line(fault)}")
        lost = run.service.recover(fault)
        state.updating |= lost and state.begun
        if state.updating:  # an update that was begun must not be made twice
            run.restore(state)
        # workers may hold other weights, such as those of a check, or what was published last is
        # gone
        else:
            state.version = run.service.publish(run.config.grown_with)
