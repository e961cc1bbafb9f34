"""Runs of a comparison that have finished, made by hand."""

from __future__ import annotations

import json
from typing import Any

from branchgrpo.comparison.runs import Comparison


def finish(
    comparison: Comparison,
    method: str,
    seed: int,
    pace: float,
    checks: list[float],
    after: tuple[float, ...] = (0, 1),
    taken: int = 1,
) -> None:
    """A finished run of an iteration a check, of `pace` seconds each; checks: held-out reward
    before training and after each iteration."""
    folder = comparison.path(method, seed)
    (folder / "samples").mkdir(parents=True)
    records: list[dict[str, Any]] = [
        {"iteration": 0, "held_out/total": checks[0], "held_out/ocr/exact": 0.0}
    ]
    count = len(checks) - 1
    for iteration in range(1, count + 1):
        record = {
            "iteration": iteration,
            "time/iteration": pace,
            "time/grow": pace / 2,
            "time/training": pace * iteration,
            "tree/leaves": 64,
            "tree/forwards": 30,
            "update/forwards": 10,
            "update/optimiser_steps": taken,
        }
        records.append(
            record | ({"held_out/total": checks[iteration]} if iteration < count else {})
        )
    records.append(
        {
            "iteration": count,
            "time/training": pace * count,
            "held_out/total": checks[-1],
            "held_out/ocr/exact": 0.5,
        }
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    scores = {
        when: {name: list(values) for name in ("total", "ocr/exact")}
        for when, values in (("before", [0.0] * len(after)), ("after", after))
    }
    (folder / "held_out.json").write_text(json.dumps(scores))
    summary = {
        "stopped_by": "iterations",
        "iterations": count,
        "diversity": {"pixels": {"mean": 0.9}, "latents": {"mean": 0.25 * (seed + 1)}},
        "forwards_per_leaf": {"rollout": 5.0 + seed, "training": None},
        "edges_per_leaf": {"all": 4.0, "stochastic": 3.0, "trained": 2.5},
    }
    (folder / "summary.json").write_text(json.dumps(summary))


def untrained(comparison: Comparison, *values: list[float]) -> None:
    for seed, one in enumerate(values):
        row = {
            "scores": {"total": one, "ocr/exact": one},
            "diversity": {"latents": {"mean": seed / 2}},
        }
        comparison.untrained_path(seed).write_text(json.dumps(row))
