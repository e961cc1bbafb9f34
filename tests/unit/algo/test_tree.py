"""Tree arrays against a tree of node objects, and the published node counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branchgrpo.algo.methods.branch import BranchMethod
from branchgrpo.algo.methods.tempflow import TempFlowMethod
from branchgrpo.algo.schedule import static
from branchgrpo.algo.tree import assemble, auto_fork_depth, fork_level, topology
from branchgrpo.types import BranchPlan, SegmentHeader, Subtree, TreeKey
from tests.reference.node_tree import build, build_comb, size_of_levels


def plan_of(fanout: tuple[int, ...], random: tuple[bool, ...]) -> BranchPlan:
    """A plan whose split steps, and those that `random` names, are stochastic; the last never
    is."""
    kernel = tuple(
        "dance" if children > 1 or noisy else "ode"
        for children, noisy in zip(fanout, random, strict=True)
    )
    return BranchPlan(
        static(len(fanout), 3.0).levels,
        fanout,
        kernel,
        tuple(0.3 if name == "dance" else 0.0 for name in kernel),
    )


@st.composite
def plans(draw: st.DrawFn) -> BranchPlan:
    steps = draw(st.integers(1, 6))
    fanout = (*draw(st.tuples(*[st.integers(1, 3)] * (steps - 1))), 1)
    return plan_of(fanout, (*draw(st.tuples(*[st.booleans()] * (steps - 1))), False))


def numbers(nodes) -> list[int]:
    return [node.number for node in nodes]


@settings(max_examples=60, deadline=None)
@given(plans())
def test_arrays_are_those_of_the_node_tree(plan) -> None:
    topo, nodes = topology(plan), build(plan.fanout)
    leaves = nodes[0].leaves()
    place = {leaf.number: index for index, leaf in enumerate(leaves)}
    assert (topo.nodes, topo.leaves) == (len(nodes), len(leaves))
    assert topo.parent.tolist() == [node.parent.number if node.parent else -1 for node in nodes]
    assert topo.step.tolist() == [node.step for node in nodes]
    assert topo.stochastic.tolist() == [
        node.step >= 0 and plan.kernel[node.step] != "ode" for node in nodes
    ]
    assert topo.leaf_count.tolist() == [len(node.leaves()) for node in nodes]
    assert topo.leaf_first.tolist() == [place[node.leaves()[0].number] for node in nodes]
    for level in range(plan.steps + 1):
        assert topo.level(level).tolist() == [node.number for node in nodes if node.level == level]


@settings(max_examples=40, deadline=None)
@given(plans(), st.data())
def test_children_descendants_and_segment_edges(plan, data) -> None:
    topo, nodes = topology(plan), build(plan.fanout)
    node = data.draw(st.sampled_from(nodes))
    for level in range(plan.steps + 1):
        expected = numbers(node.descendants(level)) if level >= node.level else None
        if expected is not None:
            assert topo.below(node.number, level).tolist() == expected
    if node.children:
        siblings = data.draw(
            st.permutations([other for other in nodes if other.level == node.level])
        )
        found, counts = topo.children(np.array(numbers(siblings), np.int32))
        assert found.tolist() == [
            number for other in siblings for number in numbers(other.children)
        ]
        assert counts.tolist() == [len(other.children) for other in siblings]
    stop = data.draw(st.integers(node.level, plan.steps))
    edges = sorted(
        other.number
        for other in node.subtree()
        if node.level < other.level <= stop and plan.kernel[other.step] != "ode"
    )
    assert topo.segment_edges(node.number, node.level, stop).tolist() == edges


@st.composite
def combs(draw: st.DrawFn) -> BranchPlan:
    steps = draw(st.integers(1, 7))
    random = (*draw(st.tuples(*[st.booleans()] * (steps - 1))), False)
    fanout = tuple(draw(st.integers(1, 3)) if noisy else 1 for noisy in random)
    kernel = tuple("flow" if noisy else "ode" for noisy in random)
    return BranchPlan(
        sigmas=static(steps, 3.0).levels,
        fanout=fanout,
        kernel=kernel,
        noise_scale=(0.7,) * steps,
        branch_noise="independent",
        comb=True,
        shared_root=False,
    )


@settings(max_examples=60, deadline=None)
@given(combs(), st.data())
def test_comb_arrays_are_those_of_the_node_tree(plan: BranchPlan, data: st.DataObject) -> None:
    topo, nodes = topology(plan), build_comb(plan.fanout, plan.stochastic)
    leaves = numbers(nodes[0].leaves())
    assert (topo.nodes, topo.leaves) == (len(nodes), len(leaves))
    assert topo.parent.tolist() == [node.parent.number if node.parent else -1 for node in nodes]
    assert topo.step.tolist() == [node.step for node in nodes]
    assert topo.stochastic.tolist() == [node.random for node in nodes]
    assert topo.leaf_count.tolist() == [len(node.leaves()) for node in nodes]
    assert topo.leaf_first.tolist() == [leaves.index(node.leaves()[0].number) for node in nodes]
    assert topo.child_count.tolist() == [len(node.children) for node in nodes]
    assert topo.first_child.tolist()[: -topo.leaves] == [
        node.children[0].number for node in nodes if node.children
    ]
    assert topo.first_child.tolist()[-topo.leaves :] == [len(nodes)] * topo.leaves
    for level in range(plan.steps + 1):
        assert topo.level(level).tolist() == [node.number for node in nodes if node.level == level]
    node = data.draw(st.sampled_from(nodes))
    for level in range(node.level, plan.steps + 1):
        assert topo.below(node.number, level).tolist() == numbers(node.descendants(level))
    # parents of one level in any order, with unequal numbers of children
    for level in range(plan.steps):
        some = data.draw(st.permutations([other for other in nodes if other.level == level]))
        found, counts = topo.children(np.array(numbers(some), np.int32))
        assert found.tolist() == [number for other in some for number in numbers(other.children)]
        assert counts.tolist() == [len(other.children) for other in some]
    assert topo.segment_edges(0, 0, plan.steps).tolist() == [
        other.number for other in nodes if other.random
    ]


@settings(max_examples=40, deadline=None)
@given(combs())
def test_every_path_of_a_comb_has_one_random_edge(plan: BranchPlan) -> None:
    topo = topology(plan)
    for leaf in topo.level(plan.steps).tolist():
        random_steps, node = [], leaf
        while node:
            if topo.stochastic[node]:
                random_steps.append(int(topo.step[node]))
            node = int(topo.parent[node])
        # a comb without random steps is one chain
        assert len(random_steps) == int(any(plan.stochastic))
        assert all(plan.stochastic[step] for step in random_steps)


def test_counts_of_tempflows_comb() -> None:
    """T = 10, K = 6: a trunk node on levels 0 … 8, and after the children of step i, 9 − i steps
    of each: 9 + 6·(9 + … + 1)."""
    plan = TempFlowMethod().plan(0, static(10, 3.0))
    topo = topology(plan)
    forwards = int((topo.child_count > 0).sum())
    assert forwards == 9 + 6 * 45 == 279
    assert topo.leaves == 9 * 6 == 54
    assert int(topo.stochastic.sum()) == 54
    # one forward of a trunk node trains its six children
    assert len(np.unique(topo.parent[topo.stochastic])) == 9
    assert np.bincount(topo.step[topo.stochastic]).tolist() == [6] * 9
    assert [len(topo.level(level)) for level in range(11)] == [
        1,
        7,
        13,
        19,
        25,
        31,
        37,
        43,
        49,
        54,
        54,
    ]
    assert [fork_level(plan, depth) for depth in range(11)] == [0] * 11  # never cut


def test_arrays_cannot_be_written() -> None:
    topo = topology(plan_of((2, 1), (True, False)))
    with pytest.raises(ValueError, match="read-only"):
        topo.parent[0] = 7


def test_published_node_counts() -> None:
    plan = BranchMethod().plan(0, static(20, 3.0))
    topo, sizes = topology(plan), size_of_levels(plan.fanout)
    assert sum(sizes[:-1]) == 203
    assert topo.nodes - 1 == sum(sizes[1:]) == 218
    assert topo.leaves == 16
    assert [len(topo.level(level)) for level in range(21)] == sizes
    assert len(np.unique(topo.parent[topo.stochastic])) == 187  # the last step is not trained
    assert int(topo.stochastic.sum()) == 218 - 16


def test_node_counts_of_the_split_only_form() -> None:
    topo = topology(BranchMethod(stochastic="splits").plan(0, static(20, 3.0)))
    edges = np.flatnonzero(topo.stochastic)
    assert len(edges) == 30
    assert len(np.unique(topo.parent[edges])) == 15
    assert sorted(set(topo.step[edges].tolist())) == [0, 3, 6, 9]


def test_fork_level_is_behind_the_chosen_split() -> None:
    plan = BranchMethod().plan(0, static(20, 3.0))
    assert [fork_level(plan, depth) for depth in range(7)] == [0, 1, 4, 7, 10, 10, 10]
    chain = plan_of((1, 1, 1), (True, True, False))
    assert fork_level(chain, 3) == 0
    for depth in range(1, 5):  # the first level that has all of these splits' nodes
        assert len(topology(plan).level(fork_level(plan, depth))) == 2**depth


@pytest.mark.parametrize(
    ("trees", "workers", "depth"),
    [
        (1, 1, 0),
        (8, 8, 0),
        (9, 8, 0),
        (7, 8, 1),
        (4, 8, 1),
        (3, 8, 2),
        (1, 8, 3),
        (1, 16, 4),
        (1, 17, 4),
        (2, 1000, 4),
    ],
)
def test_auto_fork_depth_is_the_shallowest_that_feeds_every_worker(trees, workers, depth) -> None:
    assert auto_fork_depth(BranchMethod().plan(0, static(20, 3.0)), trees, workers) == depth


def segments_of(
    plan: BranchPlan, fork: int, trees: int = 2
) -> tuple[list[SegmentHeader], dict, dict]:
    """Headers of some trees cut at `fork`, one for the roots and one for each subtree, and what
    they add up to."""
    topo, rng = topology(plan), np.random.default_rng(5)
    truth = {}
    rewards = {}
    segments = []
    for prompt in range(2):
        for tree in range(trees):
            whole = rng.standard_normal(topo.nodes).astype(np.float32)
            whole[~topo.stochastic] = 0
            truth[prompt, tree] = whole
            rewards[prompt, tree] = rng.standard_normal(topo.leaves).astype(np.float32)
            key = TreeKey("run", 3, 10 + prompt, tree)
            pieces = [(0, 0, fork), *((int(node), fork, plan.steps) for node in topo.level(fork))]
            for node, start, stop in pieces:
                values = whole[topo.segment_edges(node, start, stop)][None]
                segments.append(
                    SegmentHeader(
                        subtrees=(Subtree(key, prompt, node),),
                        start=start,
                        stop=stop,
                        policy_version=7,
                        log_prob=values,
                        forwards=0,
                        payload_bytes=0,
                    )
                )
    return segments, truth, rewards


@pytest.mark.parametrize("form", ["all", "splits"])
def test_assemble_does_not_depend_on_the_order_of_segments(form) -> None:
    plan = BranchMethod(splits=(0, 2), leaves=4, stochastic=form).plan(0, static(5, 3.0))
    segments, truth, rewards = segments_of(plan, fork_level(plan, 1))
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(segments))
        headers = assemble(plan, [segments[index] for index in order], rewards)
        assert [(header.prompt_index, header.key.tree) for header in headers] == [
            (0, 0),
            (0, 1),
            (1, 0),
            (1, 1),
        ]
        for header in headers:
            name = header.prompt_index, header.key.tree
            assert header.key.prompt == 10 + header.prompt_index
            assert header.policy_version == 7
            np.testing.assert_array_equal(header.log_prob, truth[name])
            np.testing.assert_array_equal(header.leaf_reward, rewards[name])


def test_assemble_misses_an_edge() -> None:
    plan = BranchMethod(splits=(0, 2), leaves=4).plan(0, static(5, 3.0))
    segments, _, rewards = segments_of(plan, fork_level(plan, 1))
    for lost in range(len(segments)):
        with pytest.raises(ValueError, match="log-prob"):
            assemble(plan, segments[:lost] + segments[lost + 1 :], rewards)


def test_assemble_misses_a_tree() -> None:
    plan = BranchMethod(splits=(0, 2), leaves=4).plan(0, static(5, 3.0))
    segments = [segment for segment in segments_of(plan, 0)[0] if segment.stop == plan.steps]
    rewards = segments_of(plan, 0)[2]
    with pytest.raises(ValueError, match="every reward must belong to a grown tree"):
        assemble(plan, segments[1:], rewards)


def test_plans_refuse_noise_forms_that_cannot_be() -> None:
    plan = BranchMethod(splits=(0, 2), leaves=4).plan(0, static(5, 3.0))
    with pytest.raises(ValueError, match="branch_noise"):
        replace(plan, branch_noise="corelated")
    with pytest.raises(ValueError, match="antithetic"):
        replace(plan, branch_noise="antithetic", fanout=(3, 1, 2, 1, 1))


def test_assemble_refuses_mixed_versions() -> None:
    plan = BranchMethod(splits=(0, 2), leaves=4).plan(0, static(5, 3.0))
    segments, _, rewards = segments_of(plan, fork_level(plan, 1))
    last = segments[-1]
    segments[-1] = SegmentHeader(
        subtrees=last.subtrees,
        start=last.start,
        stop=last.stop,
        policy_version=8,
        log_prob=last.log_prob,
        forwards=0,
        payload_bytes=0,
    )
    with pytest.raises(ValueError, match="version"):
        assemble(plan, segments, rewards)
