"""Steps of weights that don't train: their edges are in trees, and in no gradient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.presets import group
from support.records import records
from support.small_batch import batch, config
from support.small_trees import paper_plan, plan_of, quickstart

from actors.learner import Learner
from branchgrpo.algo.pruning.depth import DepthPruning
from branchgrpo.algo.pruning.steps import StepPruning
from branchgrpo.algo.tree import topology, trainable
from branchgrpo.config import trained_steps
from branchgrpo.config.schema import Config
from branchgrpo.errors import UserError
from branchgrpo.estimate.estimate import _counts
from branchgrpo.models.skeleton import PUBLISHED
from branchgrpo.models.small.wan import small_wan
from branchgrpo.rollout.sampler import Sampler
from branchgrpo.service import CheckpointRequest
from branchgrpo.types import BranchPlan, Subtree, TreeKey
from tests.reference.linear_model import LinearModel

A14B = {
    "model.name": "wan",
    "model.path": str(PUBLISHED / "Wan2.2-T2V-A14B-Diffusers"),
    "model.height": "32",
    "model.width": "32",
    "model.true_cfg": "1",
    "method.splits": "[0, 2]",
    "method.stochastic": "all",
    "sampling.shift": "3.0",
}


def a14b(trained: str, **keys: str) -> Config:
    """Five steps, of time steps 999, 923, 818, 667 and 429: the first two are above 875."""
    named = {key.replace("__", "."): value for key, value in keys.items()}
    return quickstart(A14B | {"sampling.steps": "5", "model.train_denoisers": trained} | named)


def plan(config: Config, iteration: int = 0) -> BranchPlan:
    schedule = config.schedule()
    return config.plan(config.method.start(schedule.steps, 0), iteration, schedule)


@pytest.mark.parametrize(
    ("trained", "steps"),
    [("both", [1, 1, 1, 1, 0]), ("high", [1, 1, 0, 0, 0]), ("low", [0, 0, 1, 1, 0])],
)
def test_steps_of_the_denoiser_that_trains(trained: str, steps: list[int]) -> None:
    found = plan(a14b(trained))
    assert found.trainable == tuple(map(bool, steps))
    # all that is grown is as it was
    assert found.stochastic == (True, True, True, True, False)


def test_edges_of_frozen_steps_are_kept_by_no_rule() -> None:
    config = a14b("low", pruning='[{"name": "steps", "fraction": 0.2}]')
    found = plan(config)
    topo = topology(found)
    assert trainable(found).tolist() == [step in (2, 3) for step in topo.step]
    for rules, count in (([], 2), ([StepPruning(fraction=0.2)], 1)):
        credit = replace(config.credit, pruning=rules)
        for one in credit.assign(found, group(found), 0, {}):
            steps = {*topo.step[one.keep].tolist()}
            # the one step that a tree draws is of those that train
            assert len(steps) == count and steps <= {2, 3}
    whole = replace(found, frozen=())
    advantages = [
        [one.advantage for one in config.credit.assign(each, group(each), 0, {})]
        for each in (found, whole)
    ]
    np.testing.assert_array_equal(*advantages)  # which see whole trees


def test_a_window_of_depths_begins_at_the_deepest_that_trains() -> None:
    found = paper_plan()
    rule = DepthPruning(window=2, slide=False, stop_depth=1)
    assert rule.window_at(found, 0) == (18, 19)
    high = tuple(step >= 15 for step in range(20))
    assert rule.window_at(replace(found, frozen=high), 0) == (14, 15)


def test_a_plan_says_of_every_step_whether_it_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen 2"):
        replace(plan_of(2, 1, 1), frozen=(True, False))


def test_latents_of_frozen_steps_are_not_sent() -> None:
    model, found = LinearModel((3,), 1), plan_of(2, 1, 2, 1)
    trees = (Subtree(TreeKey("run", 0, 0, 0), 0, 0),)
    segments = []
    for frozen in ((), (True, True, False, False)):
        sampler = Sampler(model, 1, torch.float32, 8, keep_velocity=True)
        each = replace(found, frozen=frozen)
        segments.append(
            sampler.grow(
                each,
                subtrees=trees,
                x=sampler.roots(each, trees),
                start=0,
                stop=4,
                conditioning=model.encode(records(["a"])),
            )
        )
    whole, part = segments
    assert np.array_equal(whole.log_prob, part.log_prob) and torch.equal(
        whole.frontier, part.frontier
    )
    # nodes: 0; 1, 2; 3, 4; 5 … 8; 9 … 12
    assert whole.kept_node.tolist() == [*range(9)]
    assert part.kept_node.tolist() == [*range(3, 9)]
    assert part.kept_node[part.parent_row].tolist() == [3, 4]
    for node in range(3, 9):
        rows = [one.kept[one.kept_node.tolist().index(node)] for one in segments]
        assert torch.equal(*rows)


def test_a_run_that_would_train_nothing_is_refused() -> None:
    trained_steps.check(a14b("low"))
    trained_steps.check(a14b("high"))
    alone = {"method__splits": "[0]", "method__leaves": "2", "method__stochastic": "splits"}
    trained_steps.check(a14b("high", **alone))
    with pytest.raises(UserError) as caught:
        trained_steps.check(a14b("low", **alone))
    assert str(caught.value) == (
        "model.train_denoisers: low: expected some of the steps that are trained on (the method's "
        "random ones; of losses on leaves all) among those of the weights that train, 2, 3, 4, got "
        "0: nothing would be trained"
    )
    trained_steps.check(a14b("low", **alone, loss__name="nft"))  # random steps or not
    with pytest.raises(UserError, match="train, none, got 0, 1, 2, 3, 4: nothing would be trained"):
        trained_steps.check(a14b("low", loss__name="nft", sampling__shift="200"))
    open_end = {"run__iterations": "0", "run__max_minutes": "5", "learner__schedule": "constant"}
    with pytest.raises(UserError, match="nothing would be trained"):
        trained_steps.check(a14b("low", **alone, **open_end))


def test_the_estimate_counts_what_trains() -> None:
    """A tree of 2 and 4 leaves: parents 1 + 2 of high noise, 2 + 4 of low; kept for them are the
    nodes 0 … 4 and 3 … 12."""
    counts = {trained: _counts(a14b(trained), 1) for trained in ("both", "high", "low")}
    trees = counts["both"].trees
    assert [counts[name].trained / trees for name in counts] == [9, 3, 6]
    assert [counts[name].stored / trees for name in counts] == [13, 5, 10]
    assert len({one.grown for one in counts.values()}) == 1


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = small_wan(tmp_path_factory.mktemp("frozen"), two=True)
    sizes = {"frames": "5", "max_sequence_length": "24"}
    return (
        A14B
        | {f"model.{key}": value for key, value in sizes.items()}
        | {"model.path": str(folder), "gates.enabled": "false"}
    )


@pytest.mark.networks
@pytest.mark.parametrize("trained", ["high", "low"])
def test_an_update_moves_one_denoiser(small: dict[str, str], trained: str) -> None:
    keys = small | {"model.train_denoisers": trained}
    (request,) = batch(keys)
    learner = Learner(config(1, keys), 0, list)
    learner.configure(learner.config)
    before = {name: value.clone() for name, value in learner.model.module.named_parameters()}
    stats = learner.update(request)
    moved = {
        name.partition(".")[0]
        for name, value in learner.model.module.named_parameters()
        if not torch.equal(value, before[name])
    }
    part = {"high": "transformer", "low": "transformer_2"}[trained]
    assert moved == {part}
    # of 3 trees with 2 + 2 edges of the first two steps, and 4 + 4 of the next
    assert stats.edges == 3 * (4 if trained == "high" else 8)
    sent = learner.publish()[1]
    assert {name.partition(".")[0] for name in sent.names} == {part}


@pytest.mark.networks
@pytest.mark.parametrize("trained", ["high", "low"])
def test_leaves_train_at_the_levels_of_one_denoiser(small: dict[str, str], trained: str) -> None:
    keys = small | {"model.train_denoisers": trained, "loss.name": "nft"}
    (request,) = batch(keys)
    learner = Learner(config(1, keys), 0, list)
    learner.configure(learner.config)
    before = {name: value.clone() for name, value in learner.model.module.named_parameters()}
    stats = learner.update(request)
    moved = {
        name.partition(".")[0]
        for name, value in learner.model.module.named_parameters()
        if not torch.equal(value, before[name])
    }
    assert moved == {{"high": "transformer", "low": "transformer_2"}[trained]}
    # 3 trees of 4 leaves, at two of the first four levels: `share` leaves out the fifth
    assert stats.forwards == 12 * 2


@pytest.mark.networks
def test_an_iteration_may_train_nothing(small: dict[str, str]) -> None:
    """As where a window of random steps is at the other denoiser's noise levels."""
    (request,) = batch(small)
    learner = Learner(config(1, small), 0, list)
    learner.configure(learner.config)
    before = learner.publish()[1].digest
    stats = learner.update(replace(request, plan=replace(request.plan, frozen=(True,) * 5)))
    assert (stats.edges, stats.optimiser_steps, stats.skipped_steps) == (0, 0, 0)
    assert (stats.version, learner.publish()[1].digest) == (1, before)


@pytest.mark.networks
def test_a_denoiser_without_a_gradient_has_taken_fewer_steps(
    small: dict[str, str], tmp_path: Path
) -> None:
    """As where a window of random steps has not come to its noise levels yet: AdamW's counts, by
    which it corrects its moments, differ, in a checkpoint too."""
    learner = Learner(config(1, small | {"model.lora_rank": "2"}), 0, list)
    learner.configure(learner.config)
    policy = learner.policy

    def step(*parts: str) -> None:
        for name, master in policy.named_masters().items():
            wanted = name.partition(".")[0] in parts
            master.grad = torch.ones_like(master) if wanted else None
        policy.optimiser.step()

    def counts(one: Any) -> dict[str, set[float]]:
        found: dict[str, set[float]] = {"transformer": set(), "transformer_2": set()}
        for name, master in one.named_masters().items():
            state = one.optimiser.state.get(master, {"step": 0.0})
            found[name.partition(".")[0]].add(float(state["step"]))
        return found

    step("transformer")
    step("transformer", "transformer_2")
    wanted = {"transformer": {2.0}, "transformer_2": {1.0}}
    assert counts(policy) == wanted
    learner.checkpoint(CheckpointRequest(where=str(tmp_path), iteration=1, fence=1, driver={}))
    again = Learner(learner.config, 0, list)
    again.restore(str(tmp_path))
    assert counts(again.policy) == wanted
