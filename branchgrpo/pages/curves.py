"""Curves of a run: rewards and held-out scores with their bands, seconds by phase, flat groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from branchgrpo.pages.charts import (
    COLOURS,
    NARROW,
    WIDE,
    Floats,
    Series,
    legend,
    lines,
    stacked,
)
from branchgrpo.pages.facts import Facts
from branchgrpo.report.page import text
from branchgrpo.report.sinks import PHASES, smooth

MOST = 300
"""Places of a curve that are drawn at most."""
ERRORS = '<p class="quiet">Held out: mean ± standard error over prompts.</p>'
TOLD = '<p class="told" aria-live="polite"></p>'


def figure(chart: str, *, title: str = "", above: str = "") -> str:
    """A chart with its title, and the line below it that tells what is pointed at."""
    if not chart:
        return ""
    head = f"<h3>{text(title)}</h3>" if title else ""
    return f"<figure>{head}{above}{chart}{TOLD}</figure>"


def rewards(facts: Facts) -> str:
    """Training reward, and beside it the same of held-out prompts."""
    iteration, reward = facts.figure("iteration"), facts.figure("reward/total")
    there = np.isfinite(reward)
    series, words = list[Series](), list[tuple[float, str]]()
    if there.any():
        x, raw = iteration[there], reward[there]
        means = np.array(smooth(raw))
        places = few(len(x))
        low, high = quantiles(raw, places)
        series.append(
            Series(name="each iteration", x=x[places], y=raw[places], colour=COLOURS[0], quiet=True)
        )
        series.append(
            Series(
                name="training reward",
                x=x[places],
                y=means[places],
                colour=COLOURS[0],
                low=low,
                high=high,
            )
        )
        words = [
            (float(x[at]), f"iteration {x[at]:.0f}: training reward {raw[at]:.4g}") for at in places
        ]
    held_out = of_score(facts, "total", COLOURS[1])
    if not (len(series) or len(held_out.x)):
        return ""
    series.append(held_out)
    words = sorted([*words, *_words(held_out)])
    name = "reward and held-out reward"
    charts = "".join(
        f'<div class="{kind}">'
        + figure(lines(series, label=name, size=size, words=words))
        + "</div>"
        for kind, size in (("desk", WIDE), ("phone", NARROW))
    )
    note = (
        '<p class="quiet">Training reward: every iteration, its exponential mean, and the range '
        f"of the middle 80 % of the iterations around.</p>{ERRORS}"
    )
    names = [("training reward", COLOURS[0]), ("held out, the same reward", COLOURS[1])]
    return legend(names) + charts + note


def of_score(facts: Facts, score: str, colour: str) -> Series:
    """A held-out score by iteration; its standard error where a look tells it."""
    errors = {
        look["iteration"]: known.get("error")
        for look in facts.looks
        if (known := look.get("held_out", {}).get(score))
    }
    iteration, values = facts.figure("iteration"), facts.figure(f"held_out/{score}")
    there = np.isfinite(values)
    places = np.flatnonzero(there)[few(int(there.sum()))]
    x, y = iteration[places], values[places]
    half = np.array([_number(errors.get(int(at))) for at in x], np.float64)
    return Series(name=score, x=x, y=y, colour=colour, low=y - half, high=y + half, points=True)


def scores(facts: Facts, names: Sequence[str]) -> str:
    """A small chart of each of these held-out scores."""
    found = ""
    for name in names:
        series = of_score(facts, name, COLOURS[2] if name in facts.gold else COLOURS[1])
        chart = lines([series], label=f"held out {name}", words=_words(series))
        found += figure(chart, title=name)
    return f'<div class="charts">{found}</div>' if found else ""


def _words(series: Series) -> list[tuple[float, str]]:
    assert series.low is not None
    found = []
    for at, value, low in zip(series.x, series.y, series.low, strict=True):
        error = f" ± {value - low:.2g}" if np.isfinite(low) else ""
        found.append((float(at), f"iteration {at:.0f}: held out {value:.4g}{error}"))
    return found


def phases(facts: Facts) -> str:
    """Seconds of every phase."""
    seconds = facts.figure("time/iteration")
    there = np.isfinite(seconds)
    if not there.any():
        return ""
    groups = np.array_split(np.flatnonzero(there), min(MOST, int(there.sum())))
    x = np.array([facts.figure("iteration")[group].mean() for group in groups])
    parts = [(name, _means(facts.figure(f"time/{name}"), groups)) for name in PHASES]
    rest = _means(seconds, groups) - np.sum([values for _, values in parts], axis=0)
    parts.append(("rest", np.maximum(0.0, rest)))
    names = [(name, COLOURS[index]) for index, (name, _) in enumerate(parts)]
    charts = "".join(
        f'<div class="{kind}">'
        + figure(stacked(x, parts, label="seconds by phase", size=size))
        + "</div>"
        for kind, size in (("desk", (WIDE[0], 220)), ("phone", NARROW))
    )
    return legend(names) + charts


def flat(facts: Facts) -> str:
    """How much trees have to say: flat groups, and spreads at each split."""
    found = _small(facts, ["reward/flat_groups"], "share of flat groups", zero=True)
    found += _small(facts, ["reward/spread"], "spread of a prompt's leaves", zero=True)
    splits = sorted(
        {name for record in facts.records for name in record if name.startswith("spread/")},
        key=lambda name: int(name.partition("/")[2]),
    )
    found += _small(facts, splits[: len(COLOURS)], "spread of siblings by split", zero=True)
    names = ["tree/effective_samples"]
    found += _small(facts, names, "independent leaves of a prompt", zero=True)
    return f'<div class="charts">{found}</div>' if found else ""


def _small(facts: Facts, names: Sequence[str], title: str, zero: bool) -> str:
    """Smoothed figures in one small chart."""
    series, iteration = list[Series](), facts.figure("iteration")
    for index, name in enumerate(names):
        values = facts.figure(name)
        there = np.isfinite(values)
        if there.any():
            x, y = iteration[there], np.array(smooth(values[there]))
            places = few(len(x))
            short = name.partition("/")[2]
            series.append(Series(name=short, x=x[places], y=y[places], colour=COLOURS[index]))
    if not series:
        return ""
    words = at_each(series)
    above = legend([(one.name, one.colour) for one in series]) if len(series) > 1 else ""
    return figure(lines(series, label=title, words=words, zero=zero), title=title, above=above)


def at_each(series: Sequence[Series]) -> list[tuple[float, str]]:
    """What all of them come to, at each place of any."""
    places = sorted({float(at) for one in series for at in one.x})
    return [
        (at, f"iteration {at:.0f}: " + ", ".join(_at(one, at) for one in series if one.spans(at)))
        for at in (places[place] for place in few(len(places)))
    ]


def _at(series: Series, x: float) -> str:
    value = float(np.interp(x, series.x, series.y))
    return f"{series.name} {value:.3g}"


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def few(count: int) -> list[int]:
    """Which of so many places are drawn."""
    return sorted({round(at) for at in np.linspace(0, count - 1, min(count, MOST))})


def _means(values: Floats, groups: Sequence[NDArray[np.intp]]) -> Floats:
    return np.array([np.nan_to_num(values[group]).mean() for group in groups], np.float64)


def quantiles(values: Floats, places: Sequence[int]) -> tuple[Floats, Floats]:
    """10 % and 90 % of the values around each of these places: of a tenth of all, at least 9."""
    half = max(4, len(values) // 20)
    around = [values[max(0, at - half) : at + half + 1] for at in places]
    found = np.array([np.quantile(part, (0.1, 0.9)) for part in around])
    return found[:, 0], found[:, 1]
