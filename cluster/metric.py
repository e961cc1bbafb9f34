"""What a metric of a run is: its form in the table of all (metric_table.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One metric. Prometheus sees ray_NAME, and ray_NAME_total for a counter, with the labels `run`
    and `labels`."""

    name: str
    kind: Literal["gauge", "counter"]
    panel: str  # where the Grafana board shows it
    unit: str  # as Grafana calls it; "unixtime" = seconds since 1970, shown as an age
    description: str
    labels: tuple[str, ...] = ()
    # those of metrics.jsonl that it follows, and their labels
    sources: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def exported(self) -> str:
        """Its name in Prometheus."""
        return f"ray_{self.name}" + ("_total" if self.kind == "counter" else "")


def _metric(
    kind: Literal["gauge", "counter"],
    name: str,
    description: str,
    *,
    panel: str,
    unit: str,
    labels: tuple[str, ...] = (),
    source: str = "",
    sources: Mapping[str, Mapping[str, str]] | None = None,
) -> Metric:
    """source: the only one, without labels."""
    return Metric(
        name=f"branchgrpo_{name}",
        kind=kind,
        panel=panel,
        unit=unit,
        description=description,
        labels=labels,
        sources=sources or ({source: {}} if source else {}),
    )


gauge = partial(_metric, "gauge")
counter = partial(_metric, "counter")
