"""How fast weights move, and their mean follows, by the number of optimiser steps."""

from __future__ import annotations

import math

from branchgrpo.config.roles import Learner


def rate_factor(options: Learner, step: int, total: int) -> float:
    """What the learning rate is multiplied by at optimiser step `step` (from 0) of `total`: linear
    warm-up, then the schedule."""
    if step < options.warmup:
        return (step + 1) / options.warmup
    progress = min(1.0, (step - options.warmup) / max(1, total - options.warmup))
    if options.schedule == "constant":
        return 1.0
    fall = progress if options.schedule == "linear" else 0.5 * (1.0 - math.cos(math.pi * progress))
    return 1.0 - (1.0 - options.final_rate) * fall


def ema_decay(decay: float, taken: int) -> float:
    """Decay of the weights' mean after so many optimiser steps: warms up, or the mean would be the
    untrained model for long."""
    return min((1 + taken) / (10 + taken), decay)
