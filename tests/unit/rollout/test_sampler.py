"""Segments of trees against a walk node by node, and the ODE path against diffusers' own
pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.records import records

from branchgrpo.algo import kernels
from branchgrpo.algo.methods.branch import BranchMethod
from branchgrpo.algo.methods.chains import ChainMethod
from branchgrpo.algo.methods.tempflow import TempFlowMethod
from branchgrpo.algo.methods.trunk import TrunkMethod
from branchgrpo.algo.methods.window import Window
from branchgrpo.algo.plan import ode_plan
from branchgrpo.algo.schedule import static
from branchgrpo.algo.tree import fork_level, topology
from branchgrpo.models.flux import FluxModel
from branchgrpo.models.small.flux import TinyFluxSizes, build_tiny_flux
from branchgrpo.rollout.sampler import Sampler, Segment
from branchgrpo.types import BranchPlan, Conditioning, Subtree, TreeKey
from tests.reference.linear_model import LinearModel
from tests.reference.node_tree import build
from tests.reference.slow_walk import SlowWalk

pytestmark = pytest.mark.heavy

SEED = 5
PROMPTS = ["the red circle", "the number 7 in blue"]
TREES = tuple(
    Subtree(TreeKey("run", 2, 30 + prompt, tree), prompt, 0)
    for prompt, tree in ((0, 0), (0, 1), (1, 0))
)
Name = tuple[int, int, int]  # prompt, tree, node


def paper_plan(form: str = "correlated", stochastic: str = "all") -> BranchPlan:
    return BranchMethod(branch_noise=form, stochastic=stochastic).plan(2, static(20, 3.0))


def small_plan(form: str = "correlated") -> BranchPlan:
    return BranchMethod(splits=(0, 2), leaves=4, branch_noise=form).plan(2, static(5, 3.0))


def named(subtree: Subtree, node: int) -> Name:
    return subtree.prompt_index, subtree.key.tree, int(node)


class Grown:
    """What one or several segments gave, by node."""

    def __init__(self, plan: BranchPlan):
        self.plan = plan
        self.latents: dict[Name, torch.Tensor] = {}
        self.log_prob: dict[Name, float] = {}
        self.forwards = 0

    def add(
        self, segment: Segment, subtrees: tuple[Subtree, ...], start: int, stop: int
    ) -> tuple[Subtree, ...]:
        """Take a segment in; gives the subtrees of its frontier."""
        topo, below = topology(self.plan), []
        for subtree, values in zip(subtrees, segment.log_prob, strict=True):
            edges = topo.segment_edges(subtree.node, start, stop)
            self.log_prob |= {
                named(subtree, edge): float(value)
                for edge, value in zip(edges, values, strict=True)
            }
            below += [
                Subtree(subtree.key, subtree.prompt_index, int(node))
                for node in topo.below(subtree.node, stop)
            ]
        for owner, node, latent in zip(
            segment.kept_subtree, segment.kept_node, segment.kept, strict=True
        ):
            self.latents[named(subtrees[owner], node)] = latent
        for subtree, latent in zip(below, segment.frontier, strict=True):
            self.latents[named(subtree, subtree.node)] = latent
        self.forwards += segment.forwards
        return tuple(below)


def whole(
    sampler: Sampler, plan: BranchPlan, cond: Conditioning, subtrees: tuple[Subtree, ...] = TREES
) -> Grown:
    grown = Grown(plan)
    grown.add(
        sampler.grow(
            plan,
            subtrees=subtrees,
            x=sampler.roots(plan, subtrees),
            start=0,
            stop=plan.steps,
            conditioning=cond,
        ),
        subtrees,
        0,
        plan.steps,
    )
    return grown


def cut(sampler: Sampler, plan: BranchPlan, cond: Conditioning, depth: int) -> Grown:
    """All trees to the fork level, then their subtrees in two batches, the second one first."""
    grown, fork = Grown(plan), fork_level(plan, depth)
    first = sampler.grow(
        plan, subtrees=TREES, x=sampler.roots(plan, TREES), start=0, stop=fork, conditioning=cond
    )
    below = grown.add(first, TREES, 0, fork)
    for part in (slice(len(below) // 3, None), slice(0, len(below) // 3)):
        grown.add(
            sampler.grow(
                plan,
                subtrees=below[part],
                x=first.frontier[part],
                start=fork,
                stop=plan.steps,
                conditioning=cond,
            ),
            below[part],
            fork,
            plan.steps,
        )
    return grown


def setup(
    storage: torch.dtype = torch.float32, max_batch: int = 64
) -> tuple[Sampler, Conditioning]:
    model = LinearModel()
    return Sampler(model, SEED, storage, max_batch), model.encode(records(PROMPTS))


def assert_same(found: Grown, expected: Grown) -> None:
    assert found.latents.keys() == expected.latents.keys()
    assert found.log_prob.keys() == expected.log_prob.keys()
    for name, latent in expected.latents.items():
        torch.testing.assert_close(
            found.latents[name],
            latent,
            rtol=0,
            atol=1e-6,
            msg=lambda text, name=name: f"{name}: {text}",
        )
    for name, value in expected.log_prob.items():
        assert found.log_prob[name] == pytest.approx(value, abs=1e-6), name


PLANS = {
    "correlated": small_plan(),
    "scaled": small_plan("scaled"),
    "antithetic": small_plan("antithetic"),
    "last edge": BranchMethod(splits=(0, 2), leaves=4, train_last_edge=True).plan(
        2, static(5, 3.0)
    ),
    "last edge, flow": ChainMethod(chains=2, kernel="flow", eta=0.7, train_last_edge=True).plan(
        2, static(5, 3.0)
    ),
    "dpm tail of 3": BranchMethod(
        splits=(0, 2), leaves=4, stochastic="splits", tail="dpm", tail_ratio=0.5
    ).plan(2, static(9, 3.0)),
    "dpm tail of 1": BranchMethod(
        splits=(0, 2), leaves=4, stochastic="splits", tail="dpm", tail_ratio=0.01
    ).plan(2, static(9, 3.0)),
    "shared chains": ChainMethod(chains=2, kernel="flow", eta=0.7).plan(2, static(5, 3.0)),
    "private chains": ChainMethod(chains=2, root="private", kernel="cps", eta=0.8).plan(
        2, static(5, 3.0)
    ),
    "chains with a window and a tail": ChainMethod(
        chains=2, stochastic="window", window=Window(size=2, interval=1), tail="dpm"
    ).plan(2, static(12, 3.0)),
    "trunk": TrunkMethod(children=3).plan(2, static(6, 3.0)),
    "comb": TempFlowMethod(children=3, seeds=2).plan(2, static(5, 3.0)),
    "comb, dance": TempFlowMethod(children=2, seeds=2, kernel="dance", eta=0.3).plan(
        2, static(4, 3.0)
    ),
    # the trunk goes through steps without a split; siblings share noise
    "comb with two split steps": BranchPlan(
        sigmas=static(6, 3.0).levels,
        fanout=(1, 2, 1, 3, 1, 1),
        kernel=("ode", "flow", "ode", "flow", "ode", "ode"),
        noise_scale=(0.7,) * 6,
        branch_noise="correlated",
        comb=True,
        shared_root=False,
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_tree_is_the_walk_node_by_node(name: str) -> None:
    """Latents, log-probs, kept velocities, pictures and counts of several trees, grown together in
    batches of 7."""
    plan, model = PLANS[name], LinearModel()
    sampler = Sampler(model, SEED, torch.float32, 7, keep_velocity=True)
    cond = model.encode(records(PROMPTS))
    topo = topology(plan)
    segment = sampler.grow(
        plan,
        subtrees=TREES,
        x=sampler.roots(plan, TREES),
        start=0,
        stop=plan.steps,
        conditioning=cond,
    )
    walks = [SlowWalk(plan, subtree, cond, SEED) for subtree in TREES]
    assert segment.forwards == model.rows == sum(len(walk.velocity) for walk in walks)
    for walk, values in zip(walks, segment.log_prob, strict=True):
        assert topo.segment_edges(0, 0, plan.steps).tolist() == sorted(walk.log_prob)
        # z is known to 1e-6/std
        np.testing.assert_allclose(
            values, [walk.log_prob[edge] for edge in sorted(walk.log_prob)], rtol=0, atol=3e-4
        )
    kept = list(zip(segment.kept_subtree.tolist(), segment.kept_node.tolist(), strict=True))
    parents = {
        (owner, walk.nodes[edge].parent.number)
        for owner, walk in enumerate(walks)
        for edge in walk.log_prob
    }
    assert len(kept) == len(set(kept)) == len(segment.kept)
    assert set(kept) == parents | {
        (owner, edge) for owner, walk in enumerate(walks) for edge in walk.log_prob
    }
    for (owner, node), latent in zip(kept, segment.kept, strict=True):
        np.testing.assert_allclose(latent.numpy(), walks[owner].latents[node], rtol=0, atol=2e-5)
    assert len(segment.parent_row) == len(parents) == len(segment.velocity)
    assert {kept[row] for row in segment.parent_row} == parents
    for row, v in zip(segment.parent_row, segment.velocity, strict=True):
        owner, node = kept[row]
        np.testing.assert_allclose(v.numpy(), walks[owner].velocity[node], rtol=0, atol=2e-5)
    pictures = np.concatenate([np.stack(walk.pictures) for walk in walks])  # by tree, then by leaf
    np.testing.assert_allclose(segment.frontier.numpy(), pictures, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["last edge", "last edge, flow"])
def test_noise_on_the_last_edge_is_scored_but_not_shown(name: str) -> None:
    plan, (sampler, cond) = PLANS[name], setup()
    topo = topology(plan)
    segment = sampler.grow(
        plan,
        subtrees=TREES[:1],
        x=sampler.roots(plan, TREES[:1]),
        start=0,
        stop=plan.steps,
        conditioning=cond,
    )
    kept = dict(zip(segment.kept_node.tolist(), segment.kept, strict=True))
    leaves = topo.level(plan.steps)
    stored = torch.stack([kept[leaf] for leaf in leaves])
    above = torch.stack([kept[int(topo.parent[leaf])] for leaf in leaves])
    last = torch.full((len(leaves),), plan.steps - 1)
    with torch.no_grad():
        v = sampler.model.velocity(
            above,
            torch.from_numpy(plan.sigmas)[last],
            {"prompt": torch.from_numpy(cond.arrays["prompt"][[0] * len(leaves)])},
        )
    # x̂0
    torch.testing.assert_close(segment.frontier, above - plan.sigmas[-2] * v, rtol=0, atol=1e-6)
    mean, std = kernels.transition(plan, last, above, v)
    assert ((stored - segment.frontier).abs().mean() > 0.2 * std.mean()).item()
    np.testing.assert_allclose(
        segment.log_prob[0, -len(leaves) :],
        kernels.log_prob(stored, mean, std).numpy(),
        rtol=0,
        atol=1e-6,
    )


def test_chains_of_a_group_share_their_root_and_groups_do_not() -> None:
    """trees_per_prompt: 2 of 3 chains are trees 0 … 5; a tree alone finds the same root."""
    sampler, _ = setup()
    subtrees = tuple(
        Subtree(TreeKey("run", 2, 30 + prompt, tree), prompt, 0)
        for prompt in (0, 1)
        for tree in range(6)
    )
    shared = sampler.roots(ChainMethod(chains=3).plan(2, static(5, 3.0)), subtrees).reshape(
        4, 3, -1
    )
    assert torch.equal(shared, shared[:, :1].expand_as(shared))
    assert len(torch.unique(shared[:, 0], dim=0)) == 4
    for method in (ChainMethod(chains=3, root="private"), TempFlowMethod(seeds=3)):
        assert (
            len(
                torch.unique(
                    sampler.roots(method.plan(2, static(5, 3.0)), subtrees).flatten(1), dim=0
                )
            )
            == 12
        )
    alone = sampler.roots(ChainMethod(chains=3).plan(2, static(5, 3.0)), subtrees[4:5])
    assert torch.equal(alone.flatten(), shared[1, 0])


def test_chains_with_one_root_go_apart() -> None:
    plan, (sampler, cond) = ChainMethod(chains=4).plan(2, static(5, 3.0)), setup()
    subtrees = tuple(Subtree(TreeKey("run", 2, 30, tree), 0, 0) for tree in range(4))
    leaves = sampler.grow(
        plan,
        subtrees=subtrees,
        x=sampler.roots(plan, subtrees),
        start=0,
        stop=plan.steps,
        conditioning=cond,
    ).frontier.flatten(1)
    assert torch.pdist(leaves).min() > 0.1


def test_velocities_are_kept_only_when_asked_for() -> None:
    plan, (sampler, cond) = small_plan(), setup()
    segment = sampler.grow(
        plan,
        subtrees=TREES,
        x=sampler.roots(plan, TREES),
        start=0,
        stop=plan.steps,
        conditioning=cond,
    )
    assert segment.velocity.shape == (0, 3, 4)
    assert segment.parent_row.shape == (0,)


@pytest.mark.parametrize("max_batch", [1, 3, 64])
@pytest.mark.parametrize("depth", [1, 2])
def test_cutting_a_tree_changes_nothing(depth: int, max_batch: int) -> None:
    plan, (sampler, cond) = paper_plan(), setup()
    pieces, cond = setup(max_batch=max_batch)
    expected, found = whole(sampler, plan, cond), cut(pieces, plan, cond, depth)
    assert_same(found, expected)
    assert found.forwards == expected.forwards == 203 * len(TREES)
    assert isinstance(pieces.model, LinearModel)
    assert pieces.model.largest_batch <= max_batch


@pytest.mark.parametrize("max_batch", [1, 3])
def test_the_batch_size_changes_nothing(max_batch: int) -> None:
    plan, (sampler, cond) = paper_plan(), setup()
    assert_same(whole(setup(max_batch=max_batch)[0], plan, cond), whole(sampler, plan, cond))


def test_trees_grown_alone_are_the_same() -> None:
    plan, (sampler, cond) = small_plan(), setup()
    together, alone = whole(sampler, plan, cond), Grown(plan)
    for subtree in reversed(TREES):
        alone.add(
            sampler.grow(
                plan,
                subtrees=(subtree,),
                x=sampler.roots(plan, (subtree,)),
                start=0,
                stop=plan.steps,
                conditioning=cond,
            ),
            (subtree,),
            0,
            plan.steps,
        )
    assert_same(alone, together)


@pytest.mark.parametrize("stochastic", ["all", "splits"])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_kept_nodes_are_the_ends_of_stochastic_edges(stochastic: str, depth: int) -> None:
    plan, (sampler, cond) = paper_plan(stochastic=stochastic), setup()
    topo = topology(plan)
    nodes = build(plan.fanout)
    fork = fork_level(plan, depth)
    roots = sampler.roots(plan, TREES)
    pieces = [(TREES, roots, 0, plan.steps)]
    if depth:
        first = sampler.grow(plan, subtrees=TREES, x=roots, start=0, stop=fork, conditioning=cond)
        below = tuple(
            Subtree(tree.key, tree.prompt_index, int(node))
            for tree in TREES
            for node in topo.level(fork)
        )
        pieces = [(TREES, roots, 0, fork), (below, first.frontier, fork, plan.steps)]
    for subtrees, x, start, stop in pieces:
        segment = sampler.grow(
            plan, subtrees=subtrees, x=x, start=start, stop=stop, conditioning=cond
        )
        found = list(zip(segment.kept_subtree.tolist(), segment.kept_node.tolist(), strict=True))
        expected = set()
        for owner, subtree in enumerate(subtrees):
            for node in nodes[subtree.node].subtree():
                if start < node.level <= stop and plan.kernel[node.step] != "ode":
                    expected |= {(owner, node.number), (owner, node.parent.number)}
        assert len(found) == len(set(found)) == len(segment.kept)
        assert set(found) == expected
        assert len(segment.frontier) == sum(
            node.level == stop for one in subtrees for node in nodes[one.node].subtree()
        )


def test_forwards_are_counted() -> None:
    plan, (sampler, cond) = paper_plan(), setup(max_batch=7)
    segment = sampler.grow(
        plan,
        subtrees=TREES[:1],
        x=sampler.roots(plan, TREES[:1]),
        start=0,
        stop=20,
        conditioning=cond,
    )
    assert segment.forwards == 203
    assert isinstance(sampler.model, LinearModel)
    assert sampler.model.rows == 203
    assert segment.log_prob.shape == (1, 202)
    assert segment.frontier.shape == (16, 3, 4)


@pytest.mark.parametrize("form", ["correlated", "scaled", "antithetic"])
@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16])
def test_rescoring_stored_edges_gives_the_stored_log_prob(storage: torch.dtype, form: str) -> None:
    """What a learner does: parents of all steps and trees mixed in one batch of another size and
    order."""
    plan, (sampler, cond) = paper_plan(form), setup(storage, max_batch=5)
    topo = topology(plan)
    grown = whole(sampler, plan, cond)
    model = LinearModel()
    assert all(latent.dtype == storage for latent in grown.latents.values())
    names = list(grown.log_prob)
    assert len(names) == 202 * len(TREES)
    names = [names[index] for index in np.random.default_rng(0).permutation(len(names))]
    for first in range(0, len(names), 37):
        part = names[first : first + 37]
        parents = torch.stack(
            [grown.latents[prompt, tree, int(topo.parent[node])] for prompt, tree, node in part]
        )
        children = torch.stack([grown.latents[name] for name in part])
        steps = torch.tensor([int(topo.step[node]) for _, _, node in part])
        rows = {
            "prompt": torch.from_numpy(cond.arrays["prompt"][[prompt for prompt, _, _ in part]])
        }
        with torch.no_grad():
            v = model.velocity(parents, torch.from_numpy(plan.sigmas)[steps], rows)
        found = kernels.log_prob(children, *kernels.transition(plan, steps, parents, v))
        np.testing.assert_allclose(
            found.numpy(), [grown.log_prob[name] for name in part], rtol=0, atol=1e-6
        )


def test_subtrees_must_start_at_the_level_of_their_root() -> None:
    plan, (sampler, cond) = small_plan(), setup()
    with pytest.raises(ValueError, match="level 1"):
        sampler.grow(
            plan, subtrees=TREES, x=sampler.roots(plan, TREES), start=1, stop=5, conditioning=cond
        )


OTHER_SIZES = TinyFluxSizes(
    vae_channels=(8, 16),
    latent_channels=4,
    double_blocks=2,
    single_blocks=1,
    heads=2,
    head_dim=16,
    rope_axes=(4, 6, 6),
    clip_width=32,
    t5_width=48,
)


@pytest.mark.networks
@pytest.mark.parametrize("which", ["embedded", "other"])
def test_the_ode_path_is_diffusers_pipeline(which: str, tmp_path: Path) -> None:
    from diffusers import FluxPipeline

    if which == "embedded":
        options = FluxModel(
            path="embedded:tiny-flux", height=32, width=32, guidance=2.5, max_sequence_length=16
        )
    else:
        folder = build_tiny_flux(tmp_path / "model", OTHER_SIZES, seed=3)
        options = FluxModel(
            path=str(folder), height=24, width=40, guidance=4.0, max_sequence_length=16
        )
    model, steps = options.build("cpu"), 10
    sampler, plan = Sampler(model, SEED, torch.float32, 2), ode_plan(static(steps, 3.0))
    roots = sampler.roots(plan, TREES)
    segment = sampler.grow(
        plan,
        subtrees=TREES,
        x=roots,
        start=0,
        stop=steps,
        conditioning=model.encode(records(PROMPTS)),
    )
    assert segment.kept.shape == (0, *model.latent_shape)
    assert segment.log_prob.shape == (3, 0)

    pipe = FluxPipeline.from_pretrained(options.folder())
    pipe.set_progress_bar_config(disable=True)
    latents: list[torch.Tensor] = []

    def keep(_: Any, step: int, time: Any, values: dict[str, torch.Tensor]) -> dict[str, Any]:
        latents.append(values["latents"])
        return {}

    drawn = pipe(
        prompt=[PROMPTS[subtree.prompt_index] for subtree in TREES],
        height=options.height,
        width=options.width,
        num_inference_steps=steps,
        guidance_scale=options.guidance,
        max_sequence_length=16,
        latents=roots.clone(),
        output_type="pil",
        callback_on_step_end=keep,
    )
    assert len(latents) == steps
    torch.testing.assert_close(segment.frontier, latents[-1], rtol=0, atol=1e-4)
    pictures = np.stack([np.asarray(picture) for picture in drawn.images])
    pixels = model.decode(segment.frontier)
    assert pixels.shape == (3, 1, options.height, options.width, 3)
    assert pictures.shape == pixels[:, 0].shape
    assert np.abs(pixels[:, 0].astype(int) - pictures.astype(int)).max() <= 1
