"""What the training stages share: their progress reports, their records and the conversion of
pictures."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

# called after each step with the steps done and the recent mean loss
Progress = Callable[[int, float], None]


@dataclass
class StageClock:
    """Counts the time of a stage and keeps its last losses."""

    spent: float = 0.0  # seconds of earlier, interrupted attempts
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=200))
    started: float = field(default_factory=time.perf_counter)

    def add(self, loss: torch.Tensor) -> float:
        """Keep a loss and return the mean of the recent ones."""
        self.recent.append(loss.item())
        return self.loss

    @property
    def loss(self) -> float:
        return sum(self.recent) / max(1, len(self.recent))

    @property
    def seconds(self) -> float:
        return self.spent + time.perf_counter() - self.started

    def record(self, steps: int) -> dict[str, float]:
        return {"steps": steps, "seconds": round(self.seconds, 1), "loss": round(self.loss, 4)}


def to_unit(pictures: np.ndarray) -> torch.Tensor:
    """Turn uint8 ``[n, height, width, 3]`` pictures to float ``[n, 3, height, width]`` in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
