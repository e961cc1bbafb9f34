"""Forwards and parents of an iteration: as the table of docs/methods.md works them out."""

from __future__ import annotations

import pytest
from support.small_trees import QUICKSTART

from branchgrpo.algo.schedule import static
from branchgrpo.config import load
from branchgrpo.estimate.iteration import Counts, counts


def found(preset: str, workers: int = 1, **keys: str) -> Counts:
    overrides = {name.replace("__", "."): value for name, value in keys.items()}
    config = load.load(
        QUICKSTART, {"rollout.prompts": "3", "run.iterations": "2"} | overrides, preset
    )
    return counts(config, static(config.sampling.steps, 1.0), workers)


@pytest.mark.parametrize(
    ("preset", "leaves", "grown", "trained"),
    [
        # by hand: docs/methods.md, "What each costs"
        ("branchgrpo", 16, 1 + 2 * 3 + 4 * 3 + 8 * 3 + 16 * 10, 203 - 16),
        ("branchgrpo-splits", 16, 4 + 2 * 3 + 4 * 3 + 8 * 3 + 16 * 7, 1 + 2 + 4 + 8),
        ("branchgrpo-flash", 16, 1 + 2 + 4 + 8 + 16 * 3, 1 + 2 + 4 + 8),
        # half of the chains after the last split
        ("branchgrpo-widthprune", 16, 203, 1 + 2 * 3 + 4 * 3 + 8 * 3 + 8 * 9),
        ("dancegrpo", 16, 16 * 20, 16 * 19),
        ("dancegrpo-tf06", 16, 16 * 20, 16 * 12),
        ("dancegrpo-bestofn", 24, 24 * 20, 8 * 19),
        ("mixgrpo", 16, 16 * 25, 16 * 4),
        ("tempflow", 216, 4 * 279, 4 * 9),
        # leaves, at each of their noise levels
        ("nft", 24, 24 * 10, 24 * 9),
        ("nft-scouts", 96 + 24, 96 * 6 + 24 * 10, 24 * 9),
        ("nft-flash", 16, 1 + 2 + 4 + 8 + 16 * 3, 16),
        ("nft-tree", 27, 1 + 3 + 9 + 27 * 7, 27 * 9),
        ("awm", 24, 24 * 14, 24 * 6),
        ("dgpo", 16, 16 * 10, 16 * 4),
        ("crd", 24, 24 * 10, 24 * 9),
    ],
)
def test_presets(preset: str, leaves: int, grown: int, trained: int) -> None:
    work = found(preset)
    assert work.pictures == 3 * leaves
    assert work.grown == 3 * grown
    assert work.trained == 3 * trained


def test_treegrpo_is_cheaper_the_later_its_window() -> None:
    """As often at each position as its draws are, of two iterations here."""
    config = load.load(QUICKSTART, {"run.iterations": "2"}, "treegrpo")
    starts = [config.method.window.at(iteration, 10, config.run.seed)[0] for iteration in range(2)]
    work = found("treegrpo")
    assert work.grown == 3 * sum(13 + w + 27 * (7 - w) for w in starts) / 2
    assert (work.pictures, work.trained) == (3 * 27, 3 * 13)


def test_more_trees_more_of_all() -> None:
    one, two = found("branchgrpo"), found("branchgrpo", rollout__trees_per_prompt="2")
    assert (two.trees, two.grown, two.trained) == (6, 2 * one.grown, 2 * one.trained)
    assert two.stored == 2 * one.stored == 2 * 3 * 203


def test_scouts_are_counted_and_keep_nothing() -> None:
    work, nft = found("nft-scouts"), found("nft")
    assert (work.scouts, work.scouted) == (3 * 96, 3 * 96 * 6) and nft.scouts == nft.scouted == 0
    assert (work.trees, work.stored) == (nft.trees, nft.stored) == (3 * 24, 3 * 24)
    twice = found("nft-scouts", rollout__trees_per_prompt="2", method__scout_steps="0")
    assert (twice.scouts, twice.scouted) == (3 * 192, 3 * 192 * 3)


def test_trees_are_cut_for_many_workers() -> None:
    assert found("branchgrpo", workers=3).frontier == 0
    assert found("branchgrpo", workers=6).frontier == 3 * 2
    assert found("branchgrpo", workers=24).frontier == 3 * 8


def test_of_leaves_nothing_else_is_stored() -> None:
    """Compared: with the old weights and the base; score and base before a step, base and mean in
    it."""
    nft, dgpo = found("nft-tree"), found("dgpo")
    assert nft.stored == nft.pictures == 3 * 27 and dgpo.stored == 3 * 16
    assert (nft.compared, dgpo.compared) == (2 * nft.trained, 4 * dgpo.trained)


def test_a_kl_term_trains_parents_without_advantage_too() -> None:
    plain, kl = found("flowgrpo", loss__kl_beta="0"), found("flowgrpo")
    assert plain.trained == kl.trained == 3 * 24 * 9
    assert (plain.compared, kl.compared) == (0, kl.trained)  # with the frozen base


@pytest.mark.parametrize(
    ("old", "steps", "share"),
    [
        ("behaviour", 4, 0),
        ("recompute", 1, 0),
        ("recompute", 4, 3 / 4),
    ],
)
def test_all_but_the_first_steps_parents_are_compared_with_weights_before_it(
    old: str, steps: int, share: float
) -> None:
    """Each goes through the model once more, without a gradient: see PolicyUpdate.begin."""
    keys = {"learner__old": old, "learner__optimiser_steps": str(steps)}
    work = found("branchgrpo", **keys)
    assert work.compared == share * work.trained
