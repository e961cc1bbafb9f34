"""What a run leaves for a person: the curve, summary.json and the closing table. The pictures are
in sheet.py."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from branchgrpo.report.settings import words
from branchgrpo.report.sinks import PHASES, smooth
from branchgrpo.report.student import quantile
from branchgrpo.types import F32

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = dict[str, Any]
"""One line of metrics.jsonl."""


def paired(before: F32, after: F32) -> dict[str, float]:
    """Means of the same prompts' scores [P] before and after, and the 95 % t interval [low, high]
    of their difference.

    Raises ValueError for fewer than two prompts and for unequal lengths.
    """
    if before.shape != after.shape or before.ndim != 1 or len(before) < 2:
        raise ValueError(
            "paired: expected two equally long arrays of at least 2 scores, got shapes "
            f"{before.shape} and {after.shape}"
        )
    differences = after.astype(np.float64) - before.astype(np.float64)
    mean = float(differences.mean())
    half = (
        quantile(len(differences) - 1)
        * float(differences.std(ddof=1))
        / math.sqrt(len(differences))
    )
    return {
        "before": float(before.mean(dtype=np.float64)),
        "after": float(after.mean(dtype=np.float64)),
        "difference": mean,
        "low": mean - half,
        "high": mean + half,
        "n": len(differences),
    }


def interval(values: F32) -> dict[str, float]:
    """Mean of scores [P] and its 95 % t interval [low, high]; NaN for one score."""
    mean, count = float(values.mean(dtype=np.float64)), len(values)
    half = (
        quantile(count - 1) * float(values.std(ddof=1, dtype=np.float64)) / math.sqrt(count)
        if count > 1
        else math.nan
    )
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": len(values)}


def series(records: list[Record], key: str) -> NDArray[np.float64]:
    """A figure of every record [R]; NaN where it is missing."""
    return np.array(
        [np.nan if (value := record.get(key)) is None else value for record in records], np.float64
    )


def curve(path: Path, records: list[Record], metric: str, title: str) -> None:
    """A PNG: training reward and held-out scores by iteration and by minutes, below it where the
    seconds went."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 6.5), dpi=130, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.4))
    figure.suptitle(title, fontweight="bold")
    iteration = series(records, "iteration")
    _rewards(upper, records, metric)
    _phases(lower, records)
    last = float(iteration.max(initial=1.0))
    lower.set_xlim(0, last * 1.01)
    lower.set_xlabel("iteration")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    _minutes(upper, iteration, series(records, "elapsed") / 60)
    figure.savefig(path)


def _rewards(axis: Axes, records: list[Record], metric: str) -> None:
    iteration, reward = series(records, "iteration"), series(records, "reward/total")
    there = np.isfinite(reward)
    axis.plot(
        iteration[there],
        reward[there],
        color="tab:blue",
        linewidth=0.7,
        alpha=0.5,
        label="training reward",
    )
    axis.plot(
        iteration[there],
        smooth(reward[there]),
        color="tab:blue",
        linewidth=2,
        label="training reward, smoothed",
    )
    axis.set_ylabel("training reward", color="tab:blue")
    axis.grid(alpha=0.25)
    held_out = series(records, f"held_out/{metric}")
    measured = np.isfinite(held_out)
    lines = axis.get_lines()
    if measured.any():  # a scale of its own: the score that decides need not be the one that trains
        right = axis.twinx()
        right.plot(
            iteration[measured],
            held_out[measured],
            "o-",
            color="tab:orange",
            linewidth=1,
            markersize=6,
            label=f"held out {metric}",
        )
        right.set_ylabel(f"held out {metric}", color="tab:orange")
        lines = [*lines, *right.get_lines()]
    axis.legend(
        handles=lines, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=3, frameon=False
    )


def _phases(axis: Axes, records: list[Record]) -> None:
    """Stacked steps; the few slowest iterations may leave the picture, so that the others can be
    read."""
    records = [record for record in records if record.get("time/iteration") is not None]
    axis.set_ylabel("seconds")
    axis.grid(alpha=0.25)
    if not records:
        return
    parts = np.stack([np.nan_to_num(series(records, f"time/{phase}")) for phase in PHASES])
    whole = np.maximum(series(records, "time/iteration"), parts.sum(axis=0))
    tops = np.concatenate([np.zeros((1, len(records))), np.cumsum(parts, axis=0), whole[None]])
    tops = np.concatenate([tops, tops[:, -1:]], axis=1)  # a step needs its right edge
    edges = series(records, "iteration") - 1  # iteration i is what happens between i − 1 and i
    edges = np.append(edges, edges[-1] + 1)
    colours = ("tab:purple", "tab:blue", "tab:orange", "tab:green", "tab:red", "lightgrey")
    for index, (name, colour) in enumerate(zip((*PHASES, "rest"), colours, strict=True)):
        axis.fill_between(
            edges,
            tops[index],
            tops[index + 1],
            step="post",
            color=colour,
            alpha=0.8,
            linewidth=0,
            label=name,
        )
    axis.set_ylim(0, 1.15 * float(np.quantile(whole, 0.98)))
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, reverse=True)


def _minutes(axis: Axes, iteration: NDArray[np.float64], minutes: NDArray[np.float64]) -> None:
    """Ticks at the top where round numbers of minutes had passed."""
    from matplotlib.ticker import MaxNLocator

    if not len(minutes) or minutes[-1] <= 0:
        return
    ticks = [
        tick for tick in MaxNLocator(8).tick_values(0, float(minutes[-1])) if tick <= minutes[-1]
    ]
    top = axis.secondary_xaxis("top")
    top.set_xticks(
        np.interp(ticks, [0, *minutes], [0, *iteration]), [f"{tick:g}" for tick in ticks]
    )
    top.set_xlabel("minutes")


def summary(
    config: str,
    seed: int,
    before: Mapping[str, F32],
    after: Mapping[str, F32],
    metric: str,
    records: list[Record],
    seconds: Mapping[str, float],
    stopped_by: str,
) -> dict[str, Any]:
    """What goes into summary.json; figures that need an iteration are null when there was none.

    before, after: scores [P] of the held-out prompts by reward/score; one that is missing on either
    side is left out. seconds: by stage of the run. stopped_by: see
    branchgrpo.training.state.
    """

    def total(key: str) -> float | None:
        values = series(records, key)
        return float(np.nansum(values)) if np.isfinite(values).any() else None

    def mean(key: str) -> float | None:
        values = series(records, key)
        return float(np.nanmean(values)) if np.isfinite(values).any() else None

    def median(key: str) -> float | None:
        values = series(records, key)
        return float(np.nanmedian(values)) if np.isfinite(values).any() else None

    def ratio(above: float | None, below: float | None) -> float | None:
        return above / below if above is not None and below else None

    leaves = total("tree/leaves")
    return {
        "config": config,
        "seed": seed,
        "metric": metric,
        "held_out": {
            score: paired(before[score], after[score]) for score in before if score in after
        },
        "iterations": max((int(record["iteration"]) for record in records), default=0),
        "stopped_by": stopped_by,
        "seconds": {**seconds, "total": sum(seconds.values())},
        "seconds_per_iteration": {
            "median": median("time/iteration"),
            "phases": {phase: median(f"time/{phase}") for phase in PHASES},
        },
        "forwards_per_leaf": {
            "rollout": ratio(total("tree/forwards"), leaves),
            "training": ratio(total("update/forwards"), leaves),
        },
        "edges_per_leaf": {
            "all": ratio(total("tree/edges_all"), leaves),
            "stochastic": ratio(total("tree/edges"), leaves),
            "trained": ratio(total("update/edges"), leaves),
        },
        "driver_bytes_per_iteration": mean("driver/bytes"),
        "latent_bytes_per_iteration": mean("latents/bytes"),
        "driver_share_of_latent_bytes": ratio(total("driver/bytes"), total("latents/bytes")),
    }


def table(summary: Mapping[str, Any]) -> Table:
    """The end of a run in a few lines: held-out scores, then cost per leaf and seconds."""
    drawn = f": {words(summary['settings'])}" if "settings" in summary else ""
    held_out = Table()
    for column in ("score", "before", "after", "difference", "95 % interval"):
        held_out.add_column(column, justify="left" if column == "score" else "right")
    for score, row in summary["held_out"].items():
        figures = (
            f"{row['before']:.4g}",
            f"{row['after']:.4g}",
            f"{row['difference']:+.4g}",
            f"[{row['low']:+.4g}, {row['high']:+.4g}]",
        )
        held_out.add_row(
            score,
            *(figure.replace("[", "\\[") for figure in figures),
            style="bold" if score == summary["metric"] else "",
        )
    for category, found in summary.get("categories", {}).items():
        row = found[summary["metric"]]
        means = f"{row['before']:.4g}", f"{row['after']:.4g}", f"{row['difference']:+.4g}"
        held_out.add_row(Text(f"  {category} ({found['n']})"), *means, "")
    for name, row in (summary.get("diversity") or {}).items():
        start, ratio = row.get("before"), row.get("ratio")
        known = ("–", "") if start is None else (f"{start:.4g}", f"× {ratio:.3g}")
        held_out.add_row(f"diversity, {name}", known[0], f"{row['mean']:.4g}", known[1], "")
    cost = Table(title="cost", title_justify="left", show_header=False)
    cost.add_column()
    cost.add_column()
    forwards = summary["forwards_per_leaf"]
    edges = summary["edges_per_leaf"]
    pace = summary["seconds_per_iteration"]
    phases = ", ".join(f"{phase} {_short(value, 2)}" for phase, value in pace["phases"].items())
    cost.add_row(
        "forwards per leaf",
        f"rollout {_short(forwards['rollout'])}, training {_short(forwards['training'])}",
    )
    cost.add_row(
        "edges per leaf",
        f"stochastic {_short(edges['stochastic'])}, trained {_short(edges['trained'])}",
    )
    cost.add_row("median seconds per iteration", f"{_short(pace['median'], 2)}: {phases}")
    cost.add_row(
        "iterations",
        f"{summary['iterations']} (ended by: {summary['stopped_by']}), "
        f"{summary['seconds']['total']:.0f} s in all",
    )
    both = Table.grid()
    # no title of the table, which is broken to the table's width
    both.add_row(Text(f"held-out scores{drawn}", style="table.title"))
    both.add_row(held_out)
    both.add_row(cost)
    return both


def _short(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}g}"
