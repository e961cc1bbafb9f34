"""Figures of the machine on which the driver runs. W&B has its own, of GPUs as well; those of other
nodes are on Ray's dashboard and in Prometheus."""

from __future__ import annotations

import psutil  # type: ignore[import-untyped]


class Machine:
    """Asked once an iteration."""

    def __init__(self) -> None:
        self._own = psutil.Process()
        psutil.cpu_percent()  # what follows is measured since the call before

    def __call__(self) -> dict[str, float]:
        """Load since the call before, memory now."""
        memory = psutil.virtual_memory()
        return {
            "system/cpu_percent": psutil.cpu_percent(),
            "system/memory_percent": memory.percent,
            "system/memory_gb": (memory.total - memory.available) / 1e9,
            "system/driver_memory_gb": self._own.memory_info().rss / 1e9,
        }
