"""Pictures of trees: where nodes stand, what they say, and the page."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.grown_trees import grown
from support.small_trees import paper_plan

from branchgrpo.algo.methods.chains import ChainMethod
from branchgrpo.algo.schedule import static
from branchgrpo.algo.tree import topology, viewed_nodes
from branchgrpo.report.tree.html import Shown, tree_page
from branchgrpo.report.tree.layout import placed
from branchgrpo.report.tree.shown import figures, kind
from branchgrpo.report.tree.write import write
from branchgrpo.types import BranchPlan

CHAINS = ChainMethod(chains=3, stochastic="all").plan(0, static(8, 3.0))


def told(page: str) -> list[list[dict[str, list[object]]]]:
    found = re.search(r"const TOLD = (.*);\n", page)
    assert found
    return json.loads(found[1])


def test_a_tree_shows_its_splits_and_a_chain_a_few_steps() -> None:
    plan = paper_plan()
    topo = topology(plan)
    assert set(topo.step[viewed_nodes(plan)] + 1) == {0, 3, 6, 9}
    assert viewed_nodes(plan).sum() == 1 + 2 + 4 + 8
    assert np.flatnonzero(viewed_nodes(CHAINS)).tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize("plan", [paper_plan(), CHAINS], ids=["tree", "chains"])
def test_nodes_stand_in_the_middle_of_their_children_and_no_picture_on_another(
    plan: BranchPlan,
) -> None:
    trees = grown(plan, trees=3)
    forest, topo = placed(trees), trees[0].topology
    everywhere = [place for places in forest.places for place in places]
    assert len(everywhere) == 3 * topo.nodes
    for places in forest.places:
        for node in range(topo.nodes - topo.leaves):
            below = topo.first_child[node] + np.arange(topo.child_count[node])
            ends = [places[child].y for child in (below[0], below[-1])]
            assert places[node].y == pytest.approx(sum(ends) / 2)
        assert all(places[node].x > places[topo.parent[node]].x for node in range(1, topo.nodes))
    pictures = [place for place in everywhere if place.size]
    assert len(pictures) == 3 * len(trees[0].pixels)
    for first, second in pairwise(sorted(pictures, key=lambda one: (round(one.x), one.y))):
        if round(first.x) == round(second.x):
            assert second.y - first.y >= (first.size + second.size) / 2
    columns = sorted({(round(one.x, 3), one.size) for one in pictures})
    for (x, size), (right, other) in pairwise(columns):
        assert right - x >= (size + other) / 2
    leaves = sorted(place.y for place in everywhere if place.node >= topo.nodes - topo.leaves)
    assert np.diff(leaves) == pytest.approx(forest.row)
    assert leaves[-1] < forest.height


def test_figures_of_a_node_are_its_own() -> None:
    tree = grown(paper_plan())[0]
    topo = tree.topology
    assert figures(tree, 0)["edge"] == "root"
    leaf = topo.nodes - 1
    found = figures(tree, leaf)
    assert kind(tree, leaf) == found["edge"] == "deterministic"  # the last step has no noise
    assert found["after step"] == "20 of 20"
    assert found["noise level"] == 0.0
    assert found["reward"] == pytest.approx(float(tree.reward[-1]), rel=1e-3)
    assert found["ocr/exact"] == pytest.approx(float(tree.parts["ocr/exact"][-1]), rel=1e-3)
    assert "log-prob" not in found
    first = figures(tree, 1)
    assert (first["edge"], first["leaves below"]) == ("trained", 8)
    assert first["advantage"] == pytest.approx(float(tree.advantage[1]), rel=1e-3)
    assert first["log-prob"] == pytest.approx(float(tree.log_prob[1]), rel=1e-3)
    assert first["fused reward"] == pytest.approx(float(tree.node_reward[1]), rel=1e-3)
    assert kind(tree, 3) == "not trained"
    on_leaves = grown(paper_plan(), trained="leaves")[0]
    assert figures(on_leaves, leaf)["leaf"] == "trained"
    assert figures(on_leaves, 1)["edge"] == "not trained"


def test_a_page_holds_every_node_of_all_its_trees(tmp_path: Path) -> None:
    trees = {0: grown(CHAINS, trees=2), 20: grown(CHAINS, trees=2, trained="leaves")}
    page, picture = write(tmp_path / "trees" / "p.html", "run <1>", trees, "a note")
    text = page.read_text(encoding="utf-8")
    topo = topology(CHAINS)
    for figure in range(2):
        for tree in range(2):
            for node in range(topo.nodes):
                assert text.count(f'id="n{figure}-{tree}-{node}"') == 1
    assert [[len(one["told"]) for one in row] for row in told(text)] == [[topo.nodes] * 2] * 2
    assert told(text)[1][0]["parent"] == topo.parent.tolist()
    assert "<circle> & more" not in text
    assert "a &quot;red&quot; &lt;circle&gt; &amp; more" in text
    assert "a note" in text
    with Image.open(picture) as drawn:
        assert drawn.width > drawn.height > 100


def test_large_pictures_and_many_leaves_stay_small() -> None:
    sixteen = tree_page("t", [Shown("iteration 0", grown(paper_plan(), side=512))])
    assert len(sixteen) <= 3e6
    many = tree_page("t", [Shown("iteration 0", grown(paper_plan(), trees=8, side=512))])
    assert len(many) <= 3e6
    assert many.count('class="node"') == 8 * topology(paper_plan()).nodes
