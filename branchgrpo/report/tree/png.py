"""The same trees as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from branchgrpo.report.tree.html import Shown, about, colour
from branchgrpo.report.tree.layout import Forest, Place, placed
from branchgrpo.report.tree.shown import PLAIN, TRAINED, kind
from branchgrpo.rollout.trees import GrownTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"plus": "#1f6fd1", "minus": "#c8541b", "none": "#9aa1ac"}
"""Those of the page, on light ground."""

UNITS = 110.0
"""Of the layout, to an inch."""

LONGEST = 60.0
"""Inches of the picture at most: of very many leaves it is reduced."""


def tree_png(path: Path, title: str, figures: Sequence[Shown]) -> None:
    """A PNG; figures side by side."""
    from matplotlib.figure import Figure

    forests = [placed(one.trees) for one in figures]
    strongest = max(forest.strongest for forest in forests) or 1.0
    width = sum(_width(forest) for forest in forests) / UNITS
    height = max(forest.height for forest in forests) / UNITS + 1.2
    figure = Figure(figsize=(width, height), dpi=min(110.0, 110.0 * LONGEST / height))
    figure.suptitle(
        f"{title}\n{figures[0].trees[0].sample.prompt}", x=0.01, y=0.995, ha="left", fontsize=13
    )
    axes = figure.subplots(
        1, len(figures), squeeze=False, width_ratios=[_width(forest) for forest in forests]
    )[0]
    figure.subplots_adjust(0.005, 0.005, 0.995, 1 - 0.95 / height, wspace=0.02)
    for axis, one, forest in zip(axes, figures, forests, strict=True):
        axis.set_title(f"{one.title}: {about(one.trees)}", fontsize=9, loc="left")
        axis.set_xlim(0, _width(forest))
        axis.set_ylim(forest.height + 4, -4)
        axis.axis("off")
        _edges(axis, forest, strongest)
        dots = [place for places in forest.places for place in places if not place.size]
        axis.scatter([dot.x for dot in dots], [dot.y for dot in dots], 4, COLOURS["none"], zorder=2)
        for tree, places in zip(forest.trees, forest.places, strict=True):
            for place in places:
                if place.size:
                    _picture(axis, tree, place, strongest)
    # quickly, if larger: trees are drawn at every check
    figure.savefig(path, facecolor="white", pil_kwargs={"compress_level": 1})


def _width(forest: Forest) -> float:
    return forest.places[0][-1].x + forest.row / 2 + 60


def _edges(axis: Axes, forest: Forest, strongest: float) -> None:
    """All at once: matplotlib is slow with many lines."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgba

    lines, colours, widths, styles = [], [], [], []
    for tree, places in zip(forest.trees, forest.places, strict=True):
        for node in range(1, tree.topology.nodes):
            end, begin = places[node], places[int(tree.topology.parent[node])]
            turn = np.linspace(0.0, 1.0, 2 if begin.y == end.y else 24)
            x = begin.x + (end.x - begin.x) * turn
            y = begin.y + (end.y - begin.y) * (3 * turn**2 - 2 * turn**3)
            lines.append(np.stack([x, y], 1))
            edge = kind(tree, node)
            name, strength = colour(float(tree.advantage[node]), strongest)
            plain = edge == PLAIN
            colours.append(to_rgba(COLOURS["none"]) if plain else to_rgba(COLOURS[name], strength))
            widths.append(0.9 if plain else 2.6 if edge == TRAINED else 1.3)
            styles.append("-" if plain or edge == TRAINED else ":")
    axis.add_collection(
        LineCollection(lines, colors=colours, linewidths=widths, linestyles=styles, zorder=1)
    )


def _picture(axis: Axes, tree: GrownTree, place: Place, strongest: float) -> None:
    from matplotlib.patches import Rectangle

    node, pixels = place.node, tree.pixels[place.node]
    scale = place.size / max(pixels.shape[:2])
    wide, high = pixels.shape[1] * scale, pixels.shape[0] * scale
    left, top = place.x - wide / 2, place.y - high / 2
    small = max(pixels.shape[:2]) <= 64
    axis.imshow(
        pixels,
        extent=(left, left + wide, top + high, top),
        interpolation="nearest" if small else "antialiased",
        aspect="auto",
        zorder=2,
    )
    name, strength, width = "none", 1.0, 0.6
    if tree.trained == "leaves" and kind(tree, node) == TRAINED:
        (name, strength), width = colour(float(tree.advantage[node]), strongest), 2.6
    axis.add_patch(
        Rectangle(
            (left, top),
            wide,
            high,
            fill=False,
            edgecolor=COLOURS[name],
            alpha=strength,
            linewidth=width,
            zorder=3,
        )
    )
    leaf = node - (tree.topology.nodes - tree.topology.leaves)
    if leaf >= 0:
        axis.text(
            place.x + place.size / 2 + 8,
            place.y,
            f"{tree.reward[leaf]:.2f}",
            va="center",
            fontsize=8,
        )
