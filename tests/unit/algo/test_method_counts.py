"""What each preset costs and trains: steps, forwards, edges and parents, by hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from support.presets import LAST, load, plan_at, trained

from branchgrpo.algo.tree import topology
from branchgrpo.config import load as config
from branchgrpo.config.shipped import presets

ALL_BUT_THE_LAST = tuple(range(19))


@dataclass(frozen=True)
class Counts:
    """Of one prompt's group at iteration 0: `edges` trained, `parents` whose forward trains
    them."""

    steps: int
    chains: int
    leaves: int
    splits: tuple[int, ...]
    random: tuple[int, ...]
    forwards: int
    edges: int
    parents: int


# Splits at 3, 6, 9, 12: levels of 1·4, 2·3, 4·3, 8·3, 16·7 nodes take a forward = 158; 2 + 4 + 8 +
# 16 = 30 edges of 15 parents.
SPLITS_ONLY = Counts(
    steps=20,
    chains=1,
    leaves=16,
    splits=(3, 6, 9, 12),
    random=(3, 6, 9, 12),
    forwards=158,
    edges=30,
    parents=15,
)


# Splits at 0, 3, 6, 9: 1 + 2·3 + 4·3 + 8·3 + 16·10 = 203 forwards, 218 edges; without the last
# step's 16, 202 edges of 187 parents.
PAPER_TREE = Counts(
    steps=20,
    chains=1,
    leaves=16,
    splits=(0, 3, 6, 9),
    random=ALL_BUT_THE_LAST,
    forwards=203,
    edges=202,
    parents=187,
)


CHAINS = Counts(
    steps=20,
    chains=16,
    leaves=16,
    splits=(),
    random=ALL_BUT_THE_LAST,
    forwards=16 * 20,
    edges=16 * 19,
    parents=16 * 19,
)


FLOW_CHAINS = Counts(
    steps=10,
    chains=24,
    leaves=24,
    splits=(),
    random=tuple(range(9)),
    forwards=240,
    edges=24 * 9,
    parents=24 * 9,
)


def leaves_of_chains(steps: int, chains: int) -> Counts:
    """Chains without noise, of which the leaves alone are trained."""
    return Counts(
        steps=steps,
        chains=chains,
        leaves=chains,
        splits=(),
        random=(),
        forwards=steps * chains,
        edges=chains,
        parents=chains,
    )


EXPECTED = {
    "branchgrpo": PAPER_TREE,
    "branchgrpo-adaptive": SPLITS_ONLY,
    "branchgrpo-antithetic": SPLITS_ONLY,
    "branchgrpo-splits": SPLITS_ONLY,
    # 0.4 of 7 steps: 3
    "branchgrpo-splits-flash": Counts(
        steps=16,
        chains=1,
        leaves=16,
        splits=(3, 6, 9, 12),
        random=(3, 6, 9, 12),
        forwards=4 + 6 + 12 + 24 + 16 * 3,
        edges=30,
        parents=15,
    ),
    # 0.2 of 16 steps: 3
    "branchgrpo-flash": Counts(
        steps=7,
        chains=1,
        leaves=16,
        splits=(0, 1, 2, 3),
        random=(0, 1, 2, 3),
        forwards=1 + 2 + 4 + 8 + 16 * 3,
        edges=30,
        parents=15,
    ),
    "branchgrpo-depthprune": Counts(
        steps=20,
        chains=1,
        leaves=16,
        splits=(0, 3, 6, 9),
        random=ALL_BUT_THE_LAST,
        forwards=203,
        edges=202 - 5 * 16,
        parents=187 - 5 * 16,
    ),
    # steps 10 … 18, half the leaves
    "branchgrpo-widthprune": Counts(
        steps=20,
        chains=1,
        leaves=16,
        splits=(0, 3, 6, 9),
        random=ALL_BUT_THE_LAST,
        forwards=203,
        edges=202 - 9 * 8,
        parents=187 - 9 * 8,
    ),
    "branchgrpo-extremes": Counts(
        steps=20,
        chains=1,
        leaves=16,
        splits=(0, 3, 6, 9),
        random=ALL_BUT_THE_LAST,
        forwards=203,
        edges=202 - 9 * 8,
        parents=187 - 9 * 8,
    ),
    "branchgrpo-mix": Counts(
        steps=20,
        chains=1,
        leaves=16,
        splits=(0, 3, 6, 9),
        random=(0, 1, 2, 3, 6, 9),
        forwards=203,
        edges=30 + 2 + 2,
        parents=15 + 2 + 2,
    ),
    "dancegrpo": CHAINS,
    "dancegrpo-private": CHAINS,
    "dancegrpo-tf06": Counts(
        steps=20,
        chains=16,
        leaves=16,
        splits=(),
        random=ALL_BUT_THE_LAST,
        forwards=320,
        edges=16 * 12,
        parents=16 * 12,
    ),
    "dancegrpo-bestofn": Counts(
        steps=20,
        chains=24,
        leaves=24,
        splits=(),
        random=ALL_BUT_THE_LAST,
        forwards=480,
        edges=8 * 19,
        parents=8 * 19,
    ),
    "flow-dppo": FLOW_CHAINS,
    "flowgrpo": FLOW_CHAINS,
    "grpo-guard": FLOW_CHAINS,
    "mixgrpo": Counts(
        steps=25,
        chains=16,
        leaves=16,
        splits=(),
        random=(0, 1, 2, 3),
        forwards=16 * 25,
        edges=16 * 4,
        parents=16 * 4,
    ),
    # 4 + round(0.4 · 21)
    "mixgrpo-flash": Counts(
        steps=12,
        chains=16,
        leaves=16,
        splits=(),
        random=(0, 1, 2, 3),
        forwards=16 * 12,
        edges=16 * 4,
        parents=16 * 4,
    ),
    # 4 + round(0.2 · 21)
    "mixgrpo-flash-star": Counts(
        steps=8,
        chains=16,
        leaves=16,
        splits=(),
        random=(0, 1, 2, 3),
        forwards=16 * 8,
        edges=16 * 4,
        parents=16 * 4,
    ),
    "awm": leaves_of_chains(14, 24),
    "crd": leaves_of_chains(10, 24),
    "dgpo": leaves_of_chains(10, 16),
    "nft": leaves_of_chains(10, 24),
    "nft-scouts": leaves_of_chains(10, 24),  # and 96 scouts: test_scouts.py
    # branchgrpo-flash's tree: 1 + 2 + 4 + 8 + 16 · 3
    "nft-flash": Counts(
        steps=7,
        chains=1,
        leaves=16,
        splits=(0, 1, 2, 3),
        random=(0, 1, 2, 3),
        forwards=63,
        edges=16,
        parents=16,
    ),
    # splits in three at 0, 1, 2: 1 + 3 + 9 + 27 · 7
    "nft-tree": Counts(
        steps=10,
        chains=1,
        leaves=27,
        splits=(0, 1, 2),
        random=(0, 1, 2),
        forwards=202,
        edges=27,
        parents=27,
    ),
    "tempflow": Counts(
        steps=10,
        chains=4,
        leaves=4 * 54,
        splits=tuple(range(9)),
        random=tuple(range(9)),
        forwards=4 * 279,
        edges=4 * 54,
        parents=4 * 9,
    ),
}


def counts(loaded: config.Config, iteration: int = 0) -> Counts:
    plan, keep = plan_at(loaded, iteration), trained(loaded, iteration)
    topo = topology(plan)
    random = tuple(step for step in range(plan.steps) if plan.stochastic[step])
    forwards = plan.chains * len(np.unique(topo.parent[1:]))
    parents = sum(len(np.unique(topo.parent[tree])) for tree in keep)
    return Counts(
        steps=plan.steps,
        chains=plan.chains,
        leaves=plan.chains * topo.leaves,
        splits=plan.splits,
        random=random,
        forwards=forwards,
        edges=int(keep.sum()),
        parents=parents,
    )


def test_the_table_has_every_preset() -> None:
    assert sorted([*EXPECTED, "flowgrpo-fast", "treegrpo"]) == presets()


@pytest.mark.parametrize("preset", EXPECTED)
def test_counts_of_a_preset(preset: str) -> None:
    assert counts(load(preset)) == EXPECTED[preset]


def test_flowgrpo_fast_splits_where_its_window_is() -> None:
    """10 steps, the first half holds windows of three at 0 … 2: w + 1 forwards of the trunk, then
    24 rows for 9 − w steps."""
    loaded, seen = load("flowgrpo-fast"), set()
    for iteration in range(60):
        w = plan_at(loaded, iteration).splits[0]
        seen.add(w)
        assert counts(loaded, iteration) == Counts(
            steps=10,
            chains=1,
            leaves=24,
            splits=(w,),
            random=(w, w + 1, w + 2),
            forwards=w + 1 + 24 * (9 - w),
            edges=72,
            parents=49,
        )
    assert seen == {0, 1, 2}


def test_treegrpo_splits_wherever_its_window_is() -> None:
    """10 steps, windows of three at 0 … 6: w + 1 forwards of the trunk, 3 + 9 in the window, 27
    rows for the rest; 3 + 9 + 27 edges of 1 + 3 + 9 parents, 27 leaves, as published."""
    loaded = load("treegrpo")
    starts = [plan_at(loaded, iteration).splits[0] for iteration in range(400)]
    assert set(starts) == {0, 1, 2, 3, 4, 5, 6}
    for iteration, w in enumerate(starts):
        assert counts(loaded, iteration) == Counts(
            steps=10,
            chains=1,
            leaves=27,
            splits=(w, w + 1, w + 2),
            random=(w, w + 1, w + 2),
            forwards=w + 1 + 3 + 9 + 27 * (7 - w),
            edges=39,
            parents=13,
        )


@pytest.mark.parametrize(
    "preset",
    [
        name
        for name, expected in EXPECTED.items()
        if expected.splits == (0, 3, 6, 9) and name != "branchgrpo-mix"
    ],
)
def test_the_papers_counts_with_the_last_edge(preset: str) -> None:
    """13.63 edges a leaf; 8.63 with half of the 10 post-split steps, or five of them, left out.
    Sliding changes nothing."""
    expected = 218 if preset == "branchgrpo" else 138
    loaded = load(preset, LAST)
    for iteration in (0, 29, 30, 60, 120, 150, 1000):
        assert trained(loaded, iteration).sum() == expected, iteration
    assert counts(loaded).forwards == 203


def test_the_papers_count_of_mix() -> None:
    """Split edges 30; the windows add 2+2, 4+4+8, 8+16+16, 4·16 and 4·16 between them: 67.6 on
    average, 4.23 a leaf."""
    loaded = load("branchgrpo-mix", LAST)
    found = [int(trained(loaded, 30 * position).sum()) for position in range(5)]
    assert found == [34, 46, 70, 94, 94]
    assert sum(found) / 5 == pytest.approx(67.6)
    assert [int(trained(load("branchgrpo-mix"), 30 * position).sum()) for position in range(5)] == [
        34,
        46,
        70,
        94,
        94 - 16,
    ]


@pytest.mark.parametrize(
    ("preset", "plain", "last"),
    [("dancegrpo", 19, 20), ("dancegrpo-tf06", 12, 12), ("dancegrpo-bestofn", 19, 20)],
)
def test_trained_steps_of_a_dancegrpo_chain(preset: str, plain: int, last: int) -> None:
    for loaded, steps in ((load(preset), plain), (load(preset, LAST), last)):
        for iteration in (0, 7):
            of_chain = trained(loaded, iteration).sum(1)
            assert set(of_chain.tolist()) - {0} == {steps}
            assert (of_chain > 0).sum() == (8 if preset == "dancegrpo-bestofn" else 16)


def test_mixgrpo_of_the_published_table() -> None:
    """T = 20, a window of 5: 20 forwards a chain, of which 5 are trained, wherever the window
    is."""
    loaded = load("mixgrpo", {"sampling.steps": "20", "method.window.size": "5"})
    for iteration in range(0, 1000, 25):
        start = min(iteration // 25, 14)  # steps 14 … 18 at last
        assert counts(loaded, iteration) == Counts(
            steps=20,
            chains=16,
            leaves=16,
            splits=(),
            random=tuple(range(start, start + 5)),
            forwards=320,
            edges=80,
            parents=80,
        )
