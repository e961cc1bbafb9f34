"""What a comparison found: rows, compare.md, compare.json and compare.png."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from branchgrpo.compare import Comparison
from branchgrpo.experiment import write_whole
from branchgrpo.metrics import PHASES, read
from branchgrpo.report import Record, interval, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]
F64 = NDArray[np.float64]

REFERENCE = "dancegrpo"
"""Ratios refer to this method, else to the first whose name begins so, else to the first."""

TOTAL = "total"
"""The score that training maximises."""


def rows(comparison: Comparison) -> dict[str, Row]:
    """A row for the untrained model, then one for each method that has a finished run, by its name."""
    done = [method for method in comparison.methods if comparison.complete(method)]
    found: dict[str, Row] = {}
    seeds = [seed for seed in comparison.seeds if comparison.untrained_path(seed).is_file()]
    if seeds:
        kept = [_json(comparison.untrained_path(seed)) for seed in seeds]
        scores = {name: np.mean([one["scores"][name] for one in kept], axis=0) for name in kept[0]["scores"]}
        found["untrained"] = {"seeds": seeds, "held_out": {name: interval(values) for name, values in scores.items()}, "diversity": _mean_diversity(kept)}
    for method in done:
        found[method] = _row(comparison, method)
    alike = [method for method in done if method.startswith(REFERENCE)]
    reference = REFERENCE if REFERENCE in done else next(iter([*alike, *done]), None)
    for method in done:
        assert reference is not None
        found[method]["seconds_ratio"] = found[method]["seconds_per_iteration"]["median"] / found[reference]["seconds_per_iteration"]["median"]
        found[method]["reference"] = reference
        found[method]["reaches_reference"] = _reaches(comparison, method, reference)
    return found


def write(comparison: Comparison, metric: str) -> str:
    """Write compare.json, compare.md and compare.png; returns the text of compare.md."""
    found = rows(comparison)
    text = markdown(found, metric)
    write_whole(comparison.folder / "compare.json", json.dumps(found, indent=1) + "\n")
    write_whole(comparison.folder / "compare.md", text)
    if any("seconds_per_iteration" in row for row in found.values()):
        picture(comparison, comparison.folder / "compare.png", metric)
    return text


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _mean_diversity(kept: list[dict[str, Any]]) -> float | None:
    values = [one["diversity"]["mean"] for one in kept if one.get("diversity")]
    return float(np.mean(values)) if values else None


def _row(comparison: Comparison, method: str) -> Row:
    """Figures of a method over its finished seeds. Scores are means over seeds of each prompt, with the interval over prompts."""
    seeds = comparison.complete(method)
    folders = [comparison.path(method, seed) for seed in seeds]
    summaries = [_json(folder / "summary.json") for folder in folders]
    scores = [_json(folder / "held_out.json")["after"] for folder in folders]
    records = [record for folder in folders for record in read(folder / "metrics.jsonl") if "time/iteration" in record]

    def median(key: str) -> float | None:
        values = series(records, key)
        return float(np.nanmedian(values)) if np.isfinite(values).any() else None

    def mean(section: str, key: str) -> float | None:
        values = [one[section][key] for one in summaries if one[section][key] is not None]
        return float(np.mean(values)) if values else None

    return {
        "seeds": seeds,
        "iterations": [one["iterations"] for one in summaries],
        "training_seconds": [float(series([record for record in read(folder / "metrics.jsonl")], "time/training")[-1]) for folder in folders],
        "nfe_old": {"forwards": mean("forwards_per_leaf", "rollout"), "edges": mean("edges_per_leaf", "all")},
        "nfe_new": {"forwards": mean("forwards_per_leaf", "training"), "edges": mean("edges_per_leaf", "trained")},
        "seconds_per_iteration": {"median": median("time/iteration"), "phases": {phase: median(f"time/{phase}") for phase in PHASES}},
        "held_out": {name: interval(np.mean([one[name] for one in scores], axis=0)) for name in scores[0]},
        "held_out_by_seed": {name: [float(np.mean(one[name])) for one in scores] for name in scores[0]},
        "diversity": _mean_diversity(summaries),
    }


def _reaches(comparison: Comparison, method: str, reference: str) -> list[dict[str, Any]]:
    """For each seed that both finished: training seconds until the held-out reward is at what the reference ends with,
    and at the best that it held for two checks; `share` is of the reference's training seconds.

    One check may be lucky: the first counts that is there together with the next one, if there is one. null where
    there is none.
    """
    found = []
    for seed in comparison.complete(method):
        if not comparison.done(reference, seed):
            continue
        other, others_seconds = _checks(comparison.path(reference, seed))
        own, seconds = _checks(comparison.path(method, seed))
        row: dict[str, Any] = {"seed": seed}
        for goal, value in (("end", other[-1]), ("best", max(map(min, zip(other, [*other[1:], other[-1]], strict=True))))):
            there = [score >= value for score in own]
            first = next((place for place, reached in enumerate(there) if reached and all(there[place : place + 2])), None)
            reached = seconds[first] if first is not None else None
            row[goal] = {"reward": value, "seconds": reached, "share": reached / others_seconds[-1] if reached is not None else None}
        found.append(row)
    return found


def _checks(folder: Path) -> tuple[list[float], list[float]]:
    """(held-out reward, training seconds) at each check of a run, without the one before training."""
    records = [record for record in read(folder / "metrics.jsonl") if f"held_out/{TOTAL}" in record and record["iteration"]]
    return [float(record[f"held_out/{TOTAL}"]) for record in records], [float(record["time/training"]) for record in records]


def markdown(found: dict[str, Row], metric: str) -> str:
    """The table of compare.md."""
    costs = ("NFE old, forwards (edges)", "NFE new, forwards (edges)", f"s/iteration: {', '.join(PHASES)}", "ratio")
    heads = ("method", *costs, "reward", metric, "diversity", "iterations (training)", "time to reference's end (best)")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    reference = ""
    for name, row in found.items():
        scores = [_score(row["held_out"].get(score)) for score in (TOTAL, metric)]
        diversity = "–" if row["diversity"] is None else f"{row['diversity']:.3f}"
        if name == "untrained":
            lines.append(f"| untrained | – | – | – | – | {scores[0]} | {scores[1]} | {diversity} | – | – |")
            continue
        pace, reference = row["seconds_per_iteration"], row["reference"]
        phases = ", ".join("–" if value is None else f"{value:.2f}" for value in pace["phases"].values())
        nfe = [f"{_digits(row[part]['forwards'])} ({_digits(row[part]['edges'])})" for part in ("nfe_old", "nfe_new")]
        shares = ", ".join(f"{_share(one['end'])} ({_share(one['best'])})" for one in row["reaches_reference"])
        iterations = ", ".join(f"{count} ({seconds:.0f} s)" for count, seconds in zip(row["iterations"], row["training_seconds"], strict=True))
        cells = (name, *nfe, f"{pace['median']:.2f}: {phases}", f"{row['seconds_ratio']:.2f}", *scores, diversity, iterations, shares or "–")
        lines.append("| " + " | ".join(cells) + " |")
    notes = f"""
NFE per leaf: old = rollout, new = training; forwards are rows sent through the model, edges are denoising steps of the tree
(as papers count). Seconds are medians over all iterations of all seeds; ratio: to {reference}'s. Scores are means on held-out
prompts with the 95 % interval over prompts of the mean over seeds; reward is what training maximises. Diversity: mean root
mean square distance of pictures of one prompt. Time to reference, by seed: training seconds until the held-out reward is
where {reference} ended (at the best that it held for two checks), as a part of {reference}'s training seconds.
"""
    return "\n".join(lines) + "\n" + (notes if reference else "")


def _share(goal: dict[str, Any]) -> str:
    return "never" if goal["share"] is None else f"{goal['share']:.2f}"


def _digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".rstrip("0").rstrip(".")


def _score(value: dict[str, float] | None) -> str:
    return "–" if value is None else f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def picture(comparison: Comparison, path: Path, metric: str) -> None:
    """A PNG: held-out reward and the metric against training seconds and against forwards; mean and range over seeds."""
    from matplotlib.figure import Figure

    scores = [TOTAL, *([metric] if metric != TOTAL else [])]
    figure = Figure(figsize=(12, 4.2 * len(scores)), dpi=120, layout="constrained")
    axes = figure.subplots(len(scores), 2, squeeze=False, sharey="row")
    for row, score in enumerate(scores):
        for column, (x, label) in enumerate((("seconds", "seconds of training"), ("forwards", "forwards of the model, rollout and training"))):
            for index, method in enumerate(comparison.methods):
                curves = [_curve(read(comparison.path(method, seed) / "metrics.jsonl"), score, x) for seed in comparison.complete(method)]
                if curves:
                    _draw(axes[row, column], curves, method, index)
            axes[row, column].set_xlabel(label)
            axes[row, column].grid(alpha=0.25)
        axes[row, 0].set_ylabel("held-out reward" if score == TOTAL else f"held-out {score}")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)), frameon=False)
    figure.savefig(path)


def _curve(records: list[Record], score: str, x: str) -> tuple[F64, F64]:
    """(x, score) at the held-out checks of a run."""
    forwards = np.cumsum(np.nan_to_num(series(records, "tree/forwards")) + np.nan_to_num(series(records, "update/forwards")))
    seconds = np.nan_to_num(series(records, "time/training"))
    values = series(records, f"held_out/{score}")
    there = np.isfinite(values)
    found: F64 = (seconds if x == "seconds" else forwards)[there]
    return found, values[there]


def _draw(axis: Axes, curves: list[tuple[F64, F64]], label: str, index: int) -> None:
    """Mean over seeds as a line, their range as a band, as far as all of them went."""
    grid = np.linspace(0.0, min(float(x[-1]) for x, _ in curves), 60)
    values = np.stack([np.interp(grid, x, y) for x, y in curves])
    colour, style = f"C{index % 10}", ("-", "--", ":")[index // 10 % 3]
    axis.plot(grid, values.mean(0), color=colour, linestyle=style, linewidth=2, label=f"{label} ({len(curves)} seed{'s' * (len(curves) > 1)})")
    if len(curves) > 1:
        axis.fill_between(grid, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
