"""Charts as inline SVG: crisp at any size, in the page's own colours, with a line of words for the
place that is pointed at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from branchgrpo.report.page import data, text

Floats = NDArray[np.float64]

WIDE, NARROW = (1120, 320), (380, 250)
"""Width and height of a chart over the page's width, and of a small one, or on a phone."""
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 34
MARKS = 60
"""Values of a series that have a mark each, at most."""
COLOURS = tuple(f"var(--c{index})" for index in range(8))
"""Of series, see style.py."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line with its band; NaN where it has no value."""

    name: str
    x: Floats  # [n]
    y: Floats  # [n]
    colour: str
    low: Floats | None = None  # [n]
    high: Floats | None = None  # [n]
    points: bool = False  # with a mark at each
    quiet: bool = False  # thin, and not in the legend

    def spans(self, x: float) -> bool:
        """Does it reach there?"""
        return bool(len(self.x)) and bool(self.x[0] <= x <= self.x[-1])


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` round numbers from low to high, at equal distances."""
    raw = (high - low) / max(1, most - 1)
    if not raw > 0 or not math.isfinite(raw):
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(one * power for one in (1, 2, 2.5, 5, 10) if one * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def lines(
    series: Sequence[Series],
    *,
    label: str,
    size: tuple[int, int] = NARROW,
    words: Sequence[tuple[float, str]] = (),
    zero: bool = False,
) -> str:
    """An SVG of lines over iterations. label: what a screen reader says. words: (x, what is told
    where that is pointed at). zero: the axis begins at 0."""
    if not (known := [one for one in series if np.isfinite(one.y).any()]):
        return ""
    axes = _Axes.around(known, size, zero)
    drawn = "".join(_band(one, axes) for one in known)
    drawn += "".join(_line(one, axes) for one in known)
    return axes.svg(drawn, label, words)


def stacked(
    x: Floats, parts: Sequence[tuple[str, Floats]], *, label: str, size: tuple[int, int] = NARROW
) -> str:
    """An SVG of areas on one another. x: [n]; parts: name and values [n] of each, from below."""
    if not len(x):
        return ""
    tops = np.cumsum([np.nan_to_num(values) for _, values in parts], axis=0)
    # the few slowest may leave the picture, so that the others can be read
    whole = tops[-1]
    top = 1.15 * float(np.quantile(whole, 0.98)) or 1.0
    axes = _Axes(size=size, left=float(x[0]), right=_beyond(x), low=0.0, high=top)
    drawn = ""
    below = np.zeros_like(x)
    for index, above in enumerate(tops):
        colour = COLOURS[index % len(COLOURS)]
        drawn += f'<path d="{axes.area(x, below, np.minimum(above, top))}" fill="{colour}"/>'
        below = np.minimum(above, top)
    words = [
        (
            float(at),
            f"iteration {at:.0f}: {whole[place]:.3g} s: "
            + ", ".join(f"{name} {values[place]:.2g}" for name, values in parts),
        )
        for place, at in enumerate(x)
    ]
    return axes.svg(drawn, label, words)


def bars(
    edges: Sequence[float],
    counts: Sequence[float],
    *,
    label: str,
    size: tuple[int, int] = (380, 120),
    colour: str = COLOURS[0],
) -> str:
    """An SVG of a histogram: edges [k + 1], counts [k]."""
    width, height = size
    most, bottom = max(max(counts, default=0), 1), height - 18
    pitch = width / max(1, len(counts))
    drawn = "".join(
        f'<rect x="{index * pitch + 0.5:.1f}" y="{bottom - high:.1f}" width="{pitch - 1:.1f}" '
        f'height="{high:.1f}" fill="{colour}"><title>{edges[index]:.3g} … '
        f"{edges[index + 1]:.3g}: {count:g}</title></rect>"
        for index, count in enumerate(counts)
        if (high := (bottom - 4) * count / most) > 0
    )
    ends = (0, "start", edges[0]), (width / 2, "middle", (edges[0] + edges[-1]) / 2)
    for place, anchor, value in (*ends, (width, "end", edges[-1])):
        drawn += f'<text x="{place:g}" y="{height - 3}" text-anchor="{anchor}">{value:.3g}</text>'
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{text(label)}">'
        f'<path class="axis" d="M0 {bottom}H{width}"/>{drawn}</svg>'
    )


def legend(names: Sequence[tuple[str, str]]) -> str:
    """(name, colour) of each."""
    items = "".join(
        f'<span><i style="background:{colour}"></i>{text(name)}</span>' for name, colour in names
    )
    return f'<p class="legend">{items}</p>'


@dataclass(frozen=True, kw_only=True)
class _Axes:
    size: tuple[int, int]
    left: float
    right: float
    low: float
    high: float

    @classmethod
    def around(cls, series: Sequence[Series], size: tuple[int, int], zero: bool) -> _Axes:
        values = np.concatenate(
            [part for one in series for part in (one.y, one.low, one.high) if part is not None]
        )
        values = values[np.isfinite(values)]
        low, high = float(values.min()), float(values.max())
        low = min(0.0, low) if zero else low
        room = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
        x = np.concatenate([one.x for one in series])
        return cls(
            size=size,
            left=float(x.min()),
            right=_beyond(x),
            low=low if zero and low == 0 else low - room,
            high=high + room,
        )

    def x(self, value: Floats) -> Floats:
        inner = self.size[0] - LEFT - RIGHT
        return LEFT + inner * (value - self.left) / (self.right - self.left)

    def y(self, value: Floats) -> Floats:
        inner = self.size[1] - TOP - BOTTOM
        return TOP + inner * (self.high - value) / (self.high - self.low)

    def path(self, x: Floats, y: Floats) -> str:
        return "M" + "L".join(
            f"{one:.1f} {two:.1f}" for one, two in zip(self.x(x), self.y(y), strict=True)
        )

    def area(self, x: Floats, low: Floats, high: Floats) -> str:
        back = self.path(x[::-1], low[::-1])
        return f"{self.path(x, high)}L{back[1:]}Z"

    def svg(self, drawn: str, label: str, words: Sequence[tuple[float, str]]) -> str:
        """With axes and their numbers."""
        width, height = self.size
        grid = numbers = ""
        for value in ticks(self.low, self.high, 6):
            place = float(self.y(np.array(value)))
            grid += f"M{LEFT} {place:.1f}H{width - RIGHT}"
            numbers += (
                f'<text x="{LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{value:.4g}</text>'
            )
        for value in ticks(self.left, self.right, 9 if width > 600 else 5):
            if value == int(value):
                place = float(self.x(np.array(value)))
                anchor = "end" if place > width - 24 else "middle"
                numbers += (
                    f'<text x="{place:.1f}" y="{height - 18}" text-anchor="{anchor}">'
                    f"{value:g}</text>"
                )
        numbers += (
            f'<text x="{(LEFT + width - RIGHT) / 2:.0f}" y="{height - 3}" text-anchor="middle">'
            "iteration</text>"
        )
        places: Floats = self.x(np.array([at for at, _ in words], np.float64))
        told = [[round(float(at), 1), line] for at, (_, line) in zip(places, words, strict=True)]
        pointed = f' tabindex="0" data-words="{text(data(told))}"' if told else ""
        return (
            f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{text(label)}"{pointed}>'
            f'<path class="grid" d="{grid}"/>{drawn}<g>{numbers}</g>'
            f'<path class="at" d="M0 {TOP}V{height - BOTTOM}" visibility="hidden"/></svg>'
        )


def _beyond(x: Floats) -> float:
    """The right end of an axis, which has some length."""
    return float(x.max()) if x.max() > x.min() else float(x.min()) + 1.0


def _line(one: Series, axes: _Axes) -> str:
    there = np.isfinite(one.y)
    x, y = one.x[there], one.y[there]
    kind = "thin" if one.quiet else "line"
    drawn = f'<path class="{kind}" d="{axes.path(x, y)}" stroke="{one.colour}"/>'
    if (one.points and len(x) <= MARKS) or len(x) == 1:
        drawn += "".join(
            f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3" fill="{one.colour}"/>'
            for across, down in zip(axes.x(x), axes.y(y), strict=True)
        )
    return drawn


def _band(one: Series, axes: _Axes) -> str:
    if one.low is None or one.high is None:
        return ""
    there = np.isfinite(one.low) & np.isfinite(one.high)
    if not there.any():
        return ""
    path = axes.area(one.x[there], one.low[there], one.high[there])
    return f'<path class="band" d="{path}" fill="{one.colour}"/>'
