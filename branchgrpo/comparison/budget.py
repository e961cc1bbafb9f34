"""How long each run of a comparison trains."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from branchgrpo.errors import UserError

CHECKS = 12
"""Held-out checks on the way, over a run's budget."""


@dataclass(frozen=True)
class Budget:
    """How long each run trains: iterations, or seconds of training (held-out checks not
    counted)."""

    iterations: int = 0
    seconds: float = 0.0

    @staticmethod
    def parse(text: str, option: str = "--budget") -> Budget:
        """`50` is iterations, `240s` seconds, `4m` minutes. Raises UserError, naming the option,
        for anything else."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([sm]?)", text.strip())
        if not match or float(match[1]) <= 0 or (not match[2] and "." in match[1]):
            raise UserError(
                f"{option}: expected iterations (50), seconds (240s) or minutes (4m), got {text!r}"
            )
        if match[2]:
            return Budget(seconds=float(match[1]) * (60 if match[2] == "m" else 1))
        return Budget(iterations=int(match[1]))

    def __str__(self) -> str:
        plural = "s" * (self.iterations != 1)
        return f"{self.iterations} iteration{plural}" if self.iterations else f"{self.seconds:g} s"

    def overrides(self) -> dict[str, str]:
        """Config keys of a run of this length."""
        if self.iterations:
            return {
                "run.iterations": str(self.iterations),
                "run.max_minutes": "0",
                "evaluation.every": str(math.ceil(self.iterations / CHECKS)),
            }
        keys = {
            "run.iterations": "0",
            "run.max_minutes": str(self.seconds / 60),
            "evaluation.every": "0",
        }
        # others need to know how many iterations there will be
        keys["learner.schedule"] = "constant"
        return keys | {"evaluation.every_seconds": str(self.seconds / CHECKS)}
