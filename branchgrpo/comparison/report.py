"""What a comparison found: rows of metrics, written as compare.json, compare.md and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from branchgrpo.comparison import grid_tables
from branchgrpo.comparison import pictures as compare_pictures
from branchgrpo.comparison import tables as compare_tables
from branchgrpo.comparison.runs import Comparison
from branchgrpo.comparison.statistics import (
    F64,
    Curve,
    curve,
    difference,
    level,
    over_seeds,
    time_to,
)
from branchgrpo.files.whole import write_whole
from branchgrpo.report.sinks import PHASES, read
from branchgrpo.report.summary import Record, series
from branchgrpo.training.diversity import shown

Row = dict[str, Any]

REFERENCE = "dancegrpo"
"""Differences refer to this method, else to the first whose name begins so, else to the first."""

TOTAL = "total"
"""The score that training maximises."""


def results(comparison: Comparison, metric: str) -> dict[str, Any]:
    """Everything: `rows` by method, those that have finished runs, the untrained model's first;
    `reference`, to which differences and ratios refer; `level`, the gain whose time counts;
    `metric`; `seeds` asked for; `grid` where methods were tuned, as grid.json has it."""
    done = [method for method in comparison.methods if comparison.complete(method)]
    alike = [method for method in done if method.startswith(REFERENCE)]
    reference = REFERENCE if REFERENCE in done else next(iter([*alike, *done]), None)
    rows = _untrained(comparison) | {method: _row(comparison, method) for method in done}
    curves = {method: _curve(comparison, method, comparison.complete(method)) for method in done}
    goal = level(curves, comparison.gain)
    for method in done:
        assert reference is not None
        rows[method] |= _against(comparison, method, reference, goal["gain"])
        rows[method]["seconds_ratio"] = (
            rows[method]["seconds_per_iteration"]["median"]
            / rows[reference]["seconds_per_iteration"]["median"]
        )
    found = {
        "metric": metric,
        "seeds": len(comparison.seeds),
        "reference": reference,
        "level": goal,
        "rows": rows,
    }
    return found | ({"grid": comparison.tuning.found()} if comparison.tuning else {})


def write(comparison: Comparison, metric: str) -> str:
    """Write compare.json, compare.md, compare.png and compare-samples.png; returns the tables for a
    terminal."""
    found = results(comparison, metric)
    write_whole(
        comparison.folder / "compare.json", json.dumps(found, indent=1, allow_nan=False) + "\n"
    )
    tuned = f"\n{grid_tables.markdown(found['grid'])}" if "grid" in found else ""
    write_whole(comparison.folder / "compare.md", compare_tables.markdown(found) + tuned)
    if found["reference"]:
        compare_pictures.curves(
            comparison,
            comparison.folder / "compare.png",
            [TOTAL, *([metric] if metric != TOTAL else [])],
        )
        compare_pictures.samples(comparison, comparison.folder / "compare-samples.png", metric)
    return compare_tables.terminal(found) + (
        grid_tables.terminal(found["grid"]) if "grid" in found else ""
    )


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _mean_diversity(kept: list[dict[str, Any]]) -> float | None:
    values = [row["mean"] for one in kept if (row := shown(one.get("diversity")))]
    return float(np.mean(values)) if values else None


def _scores(kept: list[dict[str, Any]]) -> dict[str, F64]:
    """[S, P] of each score, from one of the seeds' dicts each."""
    return {name: np.array([one[name] for one in kept], np.float64) for name in kept[0]}


def _held_out(scores: dict[str, F64]) -> Row:
    """Means over prompts of each seed, and over seeds with their interval."""
    means = {name: values.mean(axis=1) for name, values in scores.items()}
    return {
        "held_out": {name: over_seeds(one) for name, one in means.items()},
        "held_out_by_seed": {name: one.tolist() for name, one in means.items()},
    }


def _untrained(comparison: Comparison) -> dict[str, Row]:
    seeds = [seed for seed in comparison.seeds if comparison.untrained_path(seed).is_file()]
    if not seeds:
        return {}
    kept = [_json(comparison.untrained_path(seed)) for seed in seeds]
    return {
        "untrained": {
            "seeds": seeds,
            **_held_out(_scores([one["scores"] for one in kept])),
            "diversity": _mean_diversity(kept),
        }
    }


def _after(comparison: Comparison, method: str, seeds: list[int]) -> dict[str, F64]:
    """Scores [S, P] of the trained models."""
    return _scores(
        [_json(comparison.path(method, seed) / "held_out.json")["after"] for seed in seeds]
    )


def _row(comparison: Comparison, method: str) -> Row:
    """Metrics of a method over its finished seeds."""
    seeds = comparison.complete(method)
    folders = [comparison.path(method, seed) for seed in seeds]
    summaries = [_json(folder / "summary.json") for folder in folders]
    runs = [read(folder / "metrics.jsonl") for folder in folders]
    records = [record for run in runs for record in run if "time/iteration" in record]
    learner = comparison.configs[method, seeds[0]].learner

    def median(key: str) -> float | None:
        values = series(records, key)
        return float(np.nanmedian(values)) if np.isfinite(values).any() else None

    def mean(section: str, key: str) -> float | None:
        values = [one[section][key] for one in summaries if one[section][key] is not None]
        return float(np.mean(values)) if values else None

    return {
        "seeds": seeds,
        "learning_rate": learner.learning_rate,
        "leaves": median("tree/leaves"),
        "optimiser_steps": {
            "per_rollout": learner.optimiser_steps,
            "taken": [int(np.nansum(series(run, "update/optimiser_steps"))) for run in runs],
        },
        "settings": comparison.settings()[method],
        "iterations": [one["iterations"] for one in summaries],
        "training_seconds": [float(series(run, "time/training")[-1]) for run in runs],
        "nfe_old": {
            "forwards": mean("forwards_per_leaf", "rollout"),
            "edges": mean("edges_per_leaf", "all"),
        },
        "nfe_new": {
            "forwards": mean("forwards_per_leaf", "training"),
            "edges": mean("edges_per_leaf", "trained"),
        },
        "seconds_per_iteration": {
            "median": median("time/iteration"),
            "phases": {phase: median(f"time/{phase}") for phase in PHASES},
        },
        **_held_out(_after(comparison, method, seeds)),
        "gain": _gain(comparison, method, seeds),
        "diversity": _mean_diversity(summaries),
    }


def _gain(comparison: Comparison, method: str, seeds: list[int]) -> Row:
    """What training added to each score, paired by seed and prompt."""
    before = _scores(
        [_json(comparison.path(method, seed) / "held_out.json")["before"] for seed in seeds]
    )
    after = _after(comparison, method, seeds)
    return {name: over_seeds((after[name] - before[name]).mean(axis=1)) for name in after}


def _against(comparison: Comparison, method: str, reference: str, gain: float | None) -> Row:
    """Differences to the reference by the seeds that both have finished, and the time to the gain;
    null for the reference itself, and where no seed is common."""
    common = [seed for seed in comparison.complete(method) if comparison.done(reference, seed)]
    own = _curve(comparison, method, common or comparison.complete(method))
    if method == reference or not common:
        return {"difference": None, "time_to_gain": time_to(own, None, gain)}
    mine, theirs = _after(comparison, method, common), _after(comparison, reference, common)
    differences = {name: difference(mine[name], theirs[name]) for name in mine if name in theirs}
    return {
        "difference": differences,
        "time_to_gain": time_to(own, _curve(comparison, reference, common), gain),
    }


def _curve(comparison: Comparison, method: str, seeds: list[int]) -> Curve:
    """Held-out gain of what training maximises against seconds of training."""
    return curve([_checks(read(comparison.path(method, seed) / "metrics.jsonl")) for seed in seeds])


def _checks(records: list[Record]) -> tuple[F64, F64]:
    """(training seconds, gain) at each check of a run; the one before training, of the same
    prompts, is where gains begin."""
    checks = [record for record in records if f"held_out/{TOTAL}" in record]
    begun = [float(record[f"held_out/{TOTAL}"]) for record in checks if not record["iteration"]]
    later = [record for record in checks if record["iteration"]]
    seconds, reward = series(later, "time/training"), series(later, f"held_out/{TOTAL}")
    return seconds, reward - begun[0]
