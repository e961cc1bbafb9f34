"""A page with a prompt's trees: hover, tap or arrow keys tell of every node."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from branchgrpo.report.page import data, page, picture, text
from branchgrpo.report.tree.layout import Forest, Place, placed
from branchgrpo.report.tree.shown import PLAIN, PRUNED, TRAINED, figures, kind
from branchgrpo.rollout.trees import GrownTree

ASSETS = Path(__file__).parents[2] / "assets" / "pages"
SIDES = ((16, 256), (40, 160), (10**9, 96))
"""Leaves of a page at most, and the longer side that pictures are kept at, in pixels."""

WORDS = 74.0
"""Room right of the leaves, for their rewards."""


@dataclass(frozen=True)
class Shown:
    """A prompt's trees in one iteration."""

    title: str
    trees: Sequence[GrownTree]


def tree_page(title: str, figures_: Sequence[Shown], note: str = "") -> str:
    """The document. figures_: side by side where there is room. note: what is to be known of
    them."""
    forests = [placed(one.trees) for one in figures_]
    strongest = max(forest.strongest for forest in forests) or 1.0
    leaves = sum(len(forest.trees) * forest.trees[0].topology.leaves for forest in forests)
    side = next(pixels for most, pixels in SIDES if leaves <= most)
    parts = [
        f"<section><h2>{text(one.title)}</h2><p class=quiet>{text(about(one.trees))}</p>"
        f'<div class="scroll">{_drawn(number, forest, strongest, side)}</div></section>'
        for number, (one, forest) in enumerate(zip(figures_, forests, strict=True))
    ]
    body = (
        f"<h1>{text(title)}</h1>"
        f"<p>{text(figures_[0].trees[0].sample.prompt)}</p>"
        f"{_legend(strongest, figures_[0].trees[0])}"
        f"{f'<p class=quiet>{text(note)}</p>' if note else ''}"
        f'<main class="figures">{"".join(parts)}</main>'
        '<aside id="told" class="empty" aria-live="polite"><img id="large" alt="" hidden>'
        "<dl id=figures><dt>a node</dt><dd>hover, tap, or Tab and the arrow keys</dd></dl></aside>"
    )
    told = [[_told(tree) for tree in one.trees] for one in figures_]
    script = (ASSETS / "tree.js").read_text(encoding="utf-8")
    return page(
        title,
        body,
        style=(ASSETS / "tree.css").read_text(encoding="utf-8"),
        script=f"const TOLD = {data(told)};\n{script}",
    )


def about(trees: Sequence[GrownTree]) -> str:
    """What can be said of all of them in one line."""
    leaves = [float(value) for tree in trees for value in tree.reward]
    mean = sum(leaves) / len(leaves)
    std = (sum((one - mean) ** 2 for one in leaves) / len(leaves)) ** 0.5
    count = f"{len(trees)} trees, " if len(trees) > 1 else ""
    return (
        f"{count}{len(leaves)} leaves, reward {mean:.3f} ± {std:.3f} (mean ± spread), "
        f"best {max(leaves):.3f}, worst {min(leaves):.3f}"
    )


def _legend(strongest: float, tree: GrownTree) -> str:
    trained = "leaf trained" if tree.trained == "leaves" else "edge trained"
    lines = (
        ("plus", "3.6", "", f"advantage up to +{strongest:.2g}, {trained}"),
        ("minus", "3.6", "", f"down to −{strongest:.2g}"),
        ("plus", "1.8", "1.5 4", "random, not trained"),
        ("none", "1.2", "", "deterministic"),
    )
    found = []
    for name, width, dash, words in lines:
        line = f'd="M1 5H33" stroke-width="{width}" stroke-dasharray="{dash}"'
        drawn = f'<path class="{name}" {line}/>'
        drawn = f'<svg width="34" height="10" aria-hidden="true">{drawn}</svg>'
        found.append(f"<span>{drawn} {text(words)}</span>")
    return f"<p class=legend>{' '.join(found)}</p>"


def _told(tree: GrownTree) -> dict[str, Any]:
    """What the script needs of a tree: parents, and the figures of every node."""
    topo = tree.topology
    return {
        "parent": topo.parent.tolist(),
        "told": [figures(tree, node) for node in range(topo.nodes)],
    }


def _drawn(number: int, forest: Forest, strongest: float, side: int) -> str:
    width = forest.places[0][-1].x + forest.row / 2 + WORDS
    edges, nodes = list[str](), list[str]()
    for index, tree in enumerate(forest.trees):
        places = forest.places[index]
        for node in range(1, tree.topology.nodes):
            edges.append(_edge(tree, places, node, strongest))
        nodes += [_node(number, tree, place, strongest, side) for place in places]
    axis = _axis(forest)
    return (
        f'<svg class="tree" viewBox="0 0 {width:.0f} {forest.height + 34:.0f}" '
        f'style="--wide:{width:.0f}" role="group" aria-label="trees">'
        f"{axis}<g class=edges>{''.join(edges)}</g>{''.join(nodes)}</svg>"
    )


def _axis(forest: Forest) -> str:
    """Steps and noise levels along the bottom."""
    plan = forest.trees[0].plan
    every = math.ceil(76 / forest.step)  # a number needs that much room
    return (
        "<g class=axis>"
        + "".join(
            f'<text x="{forest.left + forest.step * level:.0f}" y="{forest.height + 26:.0f}">'
            f"{f'σ {plan.sigmas[level]:.2f}'}</text>"
            for level in range(0, plan.steps, every)
        )
        + "</g>"
    )


def _edge(tree: GrownTree, places: Sequence[Place], node: int, strongest: float) -> str:
    """The edge into a node; with a loss on leaves the last one counts as its leaf."""
    end, begin, edge = places[node], places[int(tree.topology.parent[node])], kind(tree, node)
    bend = (end.x - begin.x) / 2
    path = (
        f"M{begin.x:.1f} {begin.y:.1f}H{end.x:.1f}"
        if abs(begin.y - end.y) < 0.05
        else f"M{begin.x:.1f} {begin.y:.1f}c{bend:.1f} 0 {bend:.1f} {end.y - begin.y:.1f} "
        f"{2 * bend:.1f} {end.y - begin.y:.1f}"
    )
    if edge == PLAIN:
        return f'<path class="none" d="{path}"/>'
    name, strength = colour(float(tree.advantage[node]), strongest)
    name += " thick" if edge == TRAINED else " dotted"
    return f'<path class="{name}" d="{path}" stroke-opacity="{strength:.2f}"/>'


def colour(advantage: float, strongest: float) -> tuple[str, float]:
    """Class and opacity of an advantage."""
    name = "plus" if advantage > 0 else "minus" if advantage < 0 else "none"
    return name, 0.25 + 0.75 * min(1.0, abs(advantage) / strongest)


def _node(number: int, tree: GrownTree, place: Place, strongest: float, side: int) -> str:
    """A picture, or a dot where there is none."""
    node, topo = place.node, tree.topology
    leaf = node - (topo.nodes - topo.leaves)
    words = f"node {node}"
    edge = kind(tree, node)
    inside = f'<circle cx="{place.x:.1f}" cy="{place.y:.1f}" r="3"/>'
    if place.size:
        pixels = tree.pixels[node]
        high, wide = pixels.shape[0], pixels.shape[1]
        scale = place.size / max(high, wide)
        left, top = place.x - wide * scale / 2, place.y - high * scale / 2
        size = f'width="{wide * scale:.1f}" height="{high * scale:.1f}"'
        small = ' class="pixels"' if max(high, wide) <= 64 else ""
        inside = (
            f'<image{small} x="{left:.1f}" y="{top:.1f}" {size} href="{picture(pixels, side)}"/>'
            f'<rect x="{left:.1f}" y="{top:.1f}" {size} {_frame(tree, node, strongest)}/>'
        )
    if leaf >= 0:
        words = f"leaf {leaf}, reward {tree.reward[leaf]:.3f}"
        inside += (
            f'<text x="{place.x + place.size / 2 + 8:.1f}" y="{place.y + 5:.1f}">'
            f"{tree.reward[leaf]:.3f}</text>"
        )
    if edge in (TRAINED, PRUNED):
        words += f", {edge}, advantage {tree.advantage[node]:.3g}"
    first = number == 0 and place.tree == 0 and node == 0
    return (
        f'<g class="node" id="n{number}-{place.tree}-{node}" tabindex="{0 if first else -1}" '
        f'role="img" aria-label="{text(words)}">{inside}</g>'
    )


def _frame(tree: GrownTree, node: int, strongest: float) -> str:
    """Of a picture: a leaf that is trained shows its advantage."""
    if tree.trained == "leaves" and kind(tree, node) == TRAINED:
        name, strength = colour(float(tree.advantage[node]), strongest)
        return f'class="{name}" stroke-width="3.5" stroke-opacity="{strength:.2f}"'
    return 'class="none" stroke-width="1"'
