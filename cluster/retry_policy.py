"""How long a pool waits, and how often it tries again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """As the config's section `cluster` says."""

    # seconds within which some task must finish, and a worker that has its place must get ready
    task_timeout_seconds: float = 1800.0
    # a task is issued again after this many times the median of its like, and its worker ended
    # after as many more
    straggler_factor: float = 3.0
    straggler_seconds: float = 5.0  # … but never before this many seconds
    max_restarts: int = 20  # workers replaced in all, preempted ones apart
    max_attempts: int = 4  # workers that one task may take with it
