"""What entries of the tables do: rewards score, models answer, methods plan, losses pull."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.own_parts import own_parts
from support.records import records, seen_by
from support.remote_peers import Plain, running
from support.small_clips import aesthetic_reward, clip_reward, hps_reward
from support.small_trees import header, plan_of, quickstart
from support.tables import EVERY, component, loaded

from branchgrpo.algo.loss.base import Edges
from branchgrpo.algo.loss.forward import ForwardLoss, Points
from branchgrpo.algo.schedule import static
from branchgrpo.algo.tree import topology
from branchgrpo.config.registry import TABLES
from branchgrpo.errors import UserError
from branchgrpo.models.offload import Offloaded
from branchgrpo.models.pipeline import PipelineAdapter
from branchgrpo.models.small.flux import small_flux
from branchgrpo.models.small.flux2_klein import small_flux2_klein
from branchgrpo.models.small.hunyuan_video import small_hunyuan_video
from branchgrpo.models.small.qwen_image import small_qwen_image, small_qwen_image_edit
from branchgrpo.models.small.sd3 import small_sd3
from branchgrpo.models.small.wan import small_wan, small_wan_i2v
from branchgrpo.models.small.z_image import small_z_image
from branchgrpo.rewards.base import Resources
from branchgrpo.rewards.pickscore import PickScoreReward
from branchgrpo.rewards.small.clips import save_clip
from branchgrpo.types import BranchPlan, TreeHeader


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return own_parts(tmp_path_factory.mktemp("own"))


# Rewards

SMALL_REWARDS = ("jpeg", "ocr", "pairwise", "remote", "own:Bright", "own:brightness")


ELSEWHERE = {"colour", "geneval", "hpsv3", "image_reward", "judge", "video_align"}
"""See above."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("clips")
    path = save_clip(folder / "clip")
    return {
        "hps": hps_reward(folder),
        "clip": clip_reward(folder),
        "aesthetic": aesthetic_reward(path, folder),
        "pickscore": PickScoreReward(path=str(path)),
    }


def test_every_reward_is_built_somewhere(clips: dict[str, Any]) -> None:
    names = {name for kind, name in EVERY if kind == "rewards"}
    assert names == set(SMALL_REWARDS) | set(clips) | ELSEWHERE


def scored(options: Any) -> None:
    """Three pictures and two videos: what the scorer promises, finite, the same twice."""
    options.check()
    scorer = options.build(Resources())
    networks = [part for part in vars(scorer).values() if isinstance(part, torch.nn.Module)]
    assert set(networks) <= set(scorer.networks())  # or reward_workers.offload would leave them
    assert set(scorer.reports) == set(options.reported()) or not options.reported()
    for frames in (1, 3):
        draw = np.random.default_rng(frames)
        pixels = draw.integers(0, 256, (3, frames, 32, 32, 3), np.uint8)
        samples = records(["the number 38", "a fox with the number 7", "number 100"])
        found = scorer.score(pixels, samples)
        assert {scorer.trains_on, *scorer.reports} <= set(found)
        for name in {scorer.trains_on, *scorer.reports}:
            assert np.shape(found[name]) == (3,) and np.isfinite(found[name]).all(), name
        again = scorer.score(pixels[::-1].copy(), samples[::-1])
        np.testing.assert_allclose(
            found[scorer.trains_on], again[scorer.trains_on][::-1], rtol=1e-4, atol=1e-5
        )
        if options.has_features:
            features = scorer.features(pixels)
            assert features.shape[0] == 3 and features.ndim == 2 and features.dtype == np.float32
            np.testing.assert_allclose(scorer.features(pixels[::-1])[::-1], features, atol=1e-5)
            assert not np.allclose(features[0], features[1], atol=1e-3)
            if frames == 1:
                np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
    if not options.has_features:
        with pytest.raises(NotImplementedError, match="has no features"):
            scorer.features(pixels)


@pytest.mark.parametrize("name", SMALL_REWARDS)
def test_rewards_score(name: str, own: Path) -> None:
    with ExitStack() as serving:
        more = {}
        if name == "remote":
            url = serving.enter_context(running(Plain()))
            more = {"url": url, "report": "bright", "train_on": "bright"}
        scored(component(loaded(own, "rewards", name, **more), "rewards"))


@pytest.mark.parametrize("name", ["hps", "clip", "aesthetic", "pickscore"])
def test_rewards_with_weights_score(name: str, clips: dict[str, Any]) -> None:
    scored(clips[name])


# Models


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "sd3": small_sd3(folder / "sd3"),
        "qwen_image": small_qwen_image(folder / "qwen"),
        "qwen_image_edit": small_qwen_image_edit(folder / "qwen-edit"),
        "flux_kontext": small_flux(folder / "kontext", "FluxKontextPipeline"),
        "flux2_klein": small_flux2_klein(folder / "klein"),
        "z_image": small_z_image(folder / "z-image"),
        "hunyuan_video": small_hunyuan_video(folder / "hunyuan-video"),
        "wan": small_wan(folder / "wan"),
        "wan_i2v": small_wan_i2v(folder / "wan-i2v"),
    }


def encoders_may_rest(model: PipelineAdapter) -> None:
    """In other memory, but while they encode; see tests/unit/models/test_offload.py."""
    samples = seen_by(model.options, ['a red cube that says "red"'])  # some read that apart
    wanted = model.encode(samples).arrays
    parts = [getattr(model.pipe, part) for part in model.options.text_parts]
    encoders = [part for part in parts if isinstance(part, torch.nn.Module)]
    model.offloaded = Offloaded(encoders, "cpu")
    rest = [next(part.parameters()).data_ptr() for part in encoders]
    seen = set[int]()
    for part in encoders:
        part.register_forward_pre_hook(
            lambda module, _: seen.add(next(module.parameters()).data_ptr())
        )
    found = model.encode(samples).arrays
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    assert len(seen) == len(encoders) > 0 and not seen & set(rest)
    assert [next(part.parameters()).data_ptr() for part in encoders] == rest


@pytest.mark.parametrize("name", [name for kind, name in EVERY if kind == "models"])
def test_models_do_what_the_method_asks(name: str, own: Path, folders: dict[str, Path]) -> None:
    more = {"height": "32", "width": "48", "max_sequence_length": "24"}
    if name in folders:
        more["path"] = str(folders[name])
    found = loaded(own, "models", name, **more)
    options = found.model
    options.check()
    assert options.schedule(5).levels.shape == (6,) and options.picture_size == (32, 48)
    assert not options.adapter_rank and set(options.computing) <= set(type(options).model_fields)
    model = options.build("cpu")
    cond = model.conditioning(model.encode(seen_by(options, ["a red cube", "the number 38"])))
    if isinstance(model, PipelineAdapter):
        encoders_may_rest(model)
    x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        velocity = model.velocity(x, torch.tensor([0.9, 0.2]), cond)
    assert velocity.shape == x.shape and velocity.isfinite().all() and model.tokens(cond) > 0
    pixels = model.decode(x[:1])
    assert pixels.dtype == np.uint8 and pixels.shape[0] == 1 and pixels.shape[2:] == (32, 48, 3)
    trained = {key: value.detach() + 1 for key, value in model.trainable().items()}
    model.load(trained)
    assert all(torch.equal(value, trained[key]) for key, value in model.trainable().items())


# Methods

STEPS = (11, 16, 25)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", [name for kind, name in EVERY if kind == "methods"])
def test_plans_are_valid_and_pure(name: str, own: Path, steps: int) -> None:
    method = TABLES["methods"].find(name.replace("own:", f"{own}:"))()
    method.check(steps)
    schedule = static(steps, 3.0)
    run = method.start(steps, 7)
    for iteration in (0, 1, 50, 1000):
        plan: BranchPlan = run.plan(iteration, schedule)  # checks itself
        again = method.plan(iteration, schedule, 7)
        assert np.array_equal(plan.sigmas, again.sigmas)
        assert (plan.fanout, plan.kernel, plan.noise_scale) == (
            again.fanout,
            again.kernel,
            again.noise_scale,
        )
        assert plan.sigmas[0] == 1 and plan.sigmas[-1] == 0 and any(plan.stochastic)
        assert plan.comb == (method.shape == "comb")
        # trees split, the others do not
        assert bool(plan.splits) == (method.shape != "chain")
        assert plan.chains > 1 or len(plan.splits) > 0


@pytest.mark.parametrize("name", [name for kind, name in EVERY if kind == "methods"])
def test_a_methods_state_is_json_and_goes_back(name: str, own: Path) -> None:
    found = TABLES["methods"].find(name.replace("own:", f"{own}:"))
    learns = {"adapt_every": 1, "stochastic": "splits"}
    method = found(**(learns if "adapt_every" in found.model_fields else {}))
    schedule, run = static(16, 3.0), method.start(16, 3)
    for iteration in range(3):
        plan = run.plan(iteration, schedule)
        rewards = np.random.default_rng(iteration).normal(size=(2, topology(plan).leaves))
        run.observe(plan, rewards.astype(np.float32))
    other = method.start(16, 3)
    other.load(json.loads(json.dumps(run.state())))
    assert other.state() == run.state()
    assert other.plan(3, schedule).fanout == run.plan(3, schedule).fanout


# Credit

PLANS = {"tree": plan_of(2, 1, 2, 1), "chain": plan_of(1, 1, 1, 1)}


def trees(plan: BranchPlan) -> list[TreeHeader]:
    leaves = topology(plan).leaves
    draw = np.random.default_rng(0)
    return [
        header(plan, draw.normal(size=leaves).tolist(), prompt=prompt, tree=tree)
        for prompt in range(2)
        for tree in range(2)
    ]


@pytest.mark.parametrize("shape", PLANS)
@pytest.mark.parametrize("name", [name for kind, name in EVERY if kind == "advantage"])
def test_estimators_give_credit(name: str, own: Path, shape: str) -> None:
    estimator = component(loaded(own, "advantage", name), "advantage")
    plan = PLANS[shape]
    if shape == "chain" and estimator.compares_in_tree:
        with pytest.raises(
            UserError, match=r"advantage: expected no comparison within a tree.*`group`"
        ):
            quickstart({"method.name": "chains", "advantage.name": name})
        return
    found = estimator.credit(plan, trees(plan))
    again = estimator.credit(plan, trees(plan))
    assert len(found) == 4 and isinstance(estimator.compares_in_tree, bool)
    for one, other in zip(found, again, strict=True):
        assert np.isfinite(one.advantage).all() and np.array_equal(one.advantage, other.advantage)
        assert np.array_equal(one.keep, topology(plan).stochastic)
    # better leaves of what is compared earn more: of the last edges, which are those into leaves
    last = topology(plan).level(plan.steps - 1)
    rewards = np.stack([one.node_reward[last] for one in found[:2]])
    advantages = np.stack([one.advantage[last] for one in found[:2]])
    together = plan.fanout[plan.splits[-1]] if estimator.compares_in_tree else rewards.size
    order, earned = (np.argsort(one.reshape(-1, together)) for one in (rewards, advantages))
    assert np.array_equal(order, earned)


@pytest.mark.parametrize("name", [name for kind, name in EVERY if kind == "pruning"])
def test_rules_keep_some_and_leave_out_some(name: str, own: Path) -> None:
    rule = component(loaded(own, "pruning", name), "pruning")
    plan = plan_of(2, 1, 2, 1, 1, 1, 1, 1)
    given = trees(plan)
    masks = rule.keep(plan, given, 3, 5)
    assert len(masks) == len(given) and isinstance(rule.prunes_combs, bool)
    random = topology(plan).stochastic
    for mask, other in zip(masks, rule.keep(plan, given, 3, 5), strict=True):
        assert mask.dtype == bool and mask.shape == random.shape and np.array_equal(mask, other)
        assert 0 < (mask & random).sum() < random.sum()


# Losses


def pulls_leaves(loss: ForwardLoss) -> None:
    """Where the policy is still that which sampled, a step along the negative gradient brings the
    velocity nearer to good leaves and away from bad ones."""
    draw = torch.Generator().manual_seed(0)
    x0, added, v = (torch.randn(6, 4, generator=draw) for _ in range(3))
    t = torch.tensor([0.9, 0.7, 0.5, 0.3, 0.6, 0.4])
    points = Points(
        x0=x0,
        x=(1 - t[:, None]) * x0 + t[:, None] * added,
        target=added - x0,
        t=t,
        advantage=torch.tensor([1.0, -2.0, 0.5, -0.5, 3.0, -2.0]),
        v=v.requires_grad_(),
        base=v.detach(),
        second=v.detach(),
    )
    if loss.scored != "never":
        score = loss.score(points).detach()
        points = replace(points, score=score, mean=score.mean().expand(6))
    value, ratio, cut = loss(points)
    assert value.shape == ratio.shape == cut.shape == (6,)
    assert not ratio.requires_grad and cut.dtype == torch.bool and not cut.any()
    assert torch.allclose(ratio, torch.ones(6))
    value.sum().backward()
    assert v.grad is not None
    towards = (-v.grad * (points.target - v.detach())).sum(1)
    assert torch.equal(towards.sign(), points.advantage.sign())
    levels = loss.levels(static(8, 3.0).levels, np.random.default_rng(0))
    assert levels.dtype == np.float32 and len(levels) and (0 < levels).all() and (levels <= 1).all()
    assert loss.second == "none" or 0 <= loss.decay(1) < 1
    assert loss.needs_base == (loss.kl_beta > 0 or "base" in loss.needs | loss.score_needs)


@pytest.mark.parametrize("name", [name for kind, name in EVERY if kind == "loss"])
def test_losses_pull_towards_what_earned_more(name: str, own: Path) -> None:
    loss = component(loaded(own, "loss", name), "loss")
    if loss.process == "forward":
        return pulls_leaves(loss)
    log_prob = torch.zeros(2, 3, requires_grad=True)
    advantage = torch.tensor([[1.0, -2.0, 0.0], [0.5, -0.5, 3.0]])
    edges = Edges(
        log_prob=log_prob,
        old_log_prob=torch.zeros(2, 3),
        advantage=advantage,
        std=torch.full((2, 1), 0.3),
        dt=torch.full((2, 1), -0.1),
        mean_drift=torch.zeros(2, 1),
    )
    value, ratio, cut = loss(edges)
    assert value.shape == ratio.shape == cut.shape == (2, 3)
    assert not ratio.requires_grad and cut.dtype == torch.bool and not cut.any()
    assert torch.equal(ratio, torch.ones(2, 3))
    value.sum().backward()
    assert torch.equal(-log_prob.grad.sign(), advantage.sign())  # type: ignore[union-attr]
    assert isinstance(loss.needs_behaviour_mean, bool) and loss.kl_beta == 0
