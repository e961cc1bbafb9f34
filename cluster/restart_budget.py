"""How often workers may be lost, and what people read of it."""

from __future__ import annotations

from collections import Counter

from cluster.errors import BudgetError
from cluster.retry_policy import RetryPolicy
from cluster.tasks import Task

NOT_COUNTED = ("preempted", "scaled")
"""Causes that no budget counts."""


class RestartBudget:
    """Losses of one pool's workers. Those that go with their node count once."""

    def __init__(self, role: str, policy: RetryPolicy):
        self.role = role
        self.policy = policy
        self.restarts: Counter[str] = Counter()  # by cause
        self.nodes = set[str]()  # lost with workers on them
        # not announced yet: who is gone, and how the budget stands
        self.unannounced: list[tuple[str, str]] = []

    def count(self, why: str, node: str) -> None:
        """A worker is gone for this cause, which was on this node."""
        self.restarts[why] += 1
        if why == "node" and node:
            self.nodes.add(node)

    @property
    def spent(self) -> int:
        """Losses that count."""
        apart = (*NOT_COUNTED, "node")
        return len(self.nodes) + sum(
            count for why, count in self.restarts.items() if why not in apart
        )

    def check(self, gone: str, why: str, task: Task | None) -> None:
        """After a loss. gone: who, for people. task: what it worked on. Raises BudgetError when
        that was once too often, for the pool or for the task."""
        if self.spent > self.policy.max_restarts:
            counts = ", ".join(f"{count} {cause}" for cause, count in sorted(self.restarts.items()))
            raise BudgetError(
                f"{self.role}: {self.spent} losses of workers, {self.policy.max_restarts} are "
                f"allowed: {counts}; last: {gone}"
            )
        if task and task.failures >= self.policy.max_attempts:
            raise BudgetError(
                f"{self.role}.{task.method}: {task.failures} workers were lost with this task "
                f"({why}): {gone}"
            )

    def announce(self, gone: str, why: str) -> None:
        """Keep this loss for a line that also says who replaces it."""
        counted = f"restart {self.spent} of {self.policy.max_restarts}"
        self.unannounced.append((gone, "which no budget counts" if why in NOT_COUNTED else counted))

    def replaced(self, by: str) -> str:
        """A line for people: this worker replaces the first that is gone; empty when none is."""
        if not self.unannounced:
            return ""
        gone, budget = self.unannounced.pop(0)
        return f"{gone}; {by} replaces it, {budget}"

    def unreplaced(self) -> list[str]:
        """A line for people for each of those that nobody replaces."""
        lines = [f"{gone}, {budget}" for gone, budget in self.unannounced]
        self.unannounced.clear()
        return lines
