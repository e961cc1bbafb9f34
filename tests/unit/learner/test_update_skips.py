"""Gradients that are never finite: steps are skipped, then the run ends and says why."""

from __future__ import annotations

import numpy as np
import pytest
from support.small_batch import batch, config

from actors.learner import Learner

pytestmark = pytest.mark.networks


def test_skips_in_a_row_end_the_run_named() -> None:
    arguments = batch()
    learner = Learner(config(1, {"gates.enabled": "false", "learner.max_skips": "3"}), 0, list)
    learner.join(1, "")
    kept = [payload.latents.copy() for _, payload in arguments[0].segments]

    def stats(poisoned: bool) -> int:
        for (_, payload), latents in zip(arguments[0].segments, kept, strict=True):
            payload.latents[:] = np.nan if poisoned else latents
        learner.version = 0  # the same trees again
        return int(learner.update(*arguments).skipped_steps)

    # a good one between begins the count anew
    assert [stats(True), stats(True), stats(False), stats(True), stats(True)] == [1, 1, 0, 1, 1]
    with pytest.raises(
        RuntimeError,
        match=r"^learner-0: 3 optimiser steps in a row had a gradient that is not finite$",
    ):
        stats(True)
