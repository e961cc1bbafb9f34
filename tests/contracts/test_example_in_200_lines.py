"""examples/branchgrpo_in_200_lines.py against the engine: the same plan and noise give the same
trees, credit, gradient and weights, though the two share no line of the method."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from support.records import records
from support.small_trees import QUICKSTART, quickstart
from torch import Tensor

from branchgrpo.algo import noise
from branchgrpo.algo.tree import topology
from branchgrpo.config import load as configs
from branchgrpo.config.schema import Config
from branchgrpo.learner import shard
from branchgrpo.learner.batches import MicroBatches
from branchgrpo.learner.policy import PolicyUpdate, Tally
from branchgrpo.models.flux import Flux
from branchgrpo.rollout.sampler import Sampler
from branchgrpo.types import BranchPlan, Subtree, TreeCredit, TreeHeader, TreeKey

pytestmark = pytest.mark.networks

FILE = Path(__file__).parents[2] / "examples" / "branchgrpo_in_200_lines.py"
TEXTS = ["the number 38 in black on yellow", "the number 12 in red on white"]
SEED, ITERATION = 3, 5
KEYS = [TreeKey("test", ITERATION, prompt, 0) for prompt in (7, 11)]

COMMON = {
    "run.seed": str(SEED),
    "sampling.steps": "6",
    "method.stochastic": "all",
    "method.splits": "[0, 2]",
    "method.branch_noise": "correlated",
    "learner.warmup": "0",
    "learner.schedule": "constant",
}
CASES: dict[str, dict[str, str]] = {
    "the paper's tree": {},
    "random at splits alone": {"method.stochastic": "splits", "method.splits": "[1, 3]"},
    "likelier paths weigh more": {"advantage.path_beta": "20"},
    "width pruning": {"pruning": "[{name: width, mode: parent_top1}]"},
    "three children": {"method.fanout": "3", "method.branch_scale": "2", "method.eta": "0.5"},
    "small clamp and norm": {"advantage.clamp": "0.7", "learner.max_grad_norm": "0.01"},
    # the later steps are off the policy that grew the trees: ratios move, up and down
    "three optimiser steps": {
        "learner.optimiser_steps": "3",
        "learner.learning_rate": "1e-4",
        "loss.clip_range": "5e-5",
    },
}


@lru_cache(maxsize=1)
def example() -> ModuleType:
    spec = spec_from_file_location("branchgrpo_in_200_lines", FILE)
    assert spec and spec.loader
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@lru_cache(maxsize=1)
def untrained() -> Flux:
    return quickstart().model.build("cpu")


def settings(config: Config) -> Any:
    """The example's, of a config."""
    return example().Settings(
        steps=config.sampling.steps,
        splits=config.method.splits,
        fanout=config.method.fanout,
        only_splits=config.method.stochastic == "splits",
        shift=config.schedule().shift,
        eta=config.method.eta,
        branch_scale=config.method.branch_scale,
        path_beta=config.advantage.path_beta,
        width_pruning=bool(config.pruning),
        clip_range=config.loss.clip_range,
        clamp=config.advantage.clamp,
        optimiser_steps=config.learner.optimiser_steps,
        learning_rate=config.learner.learning_rate,
        max_grad_norm=config.learner.max_grad_norm,
        prompts=len(TEXTS),
        seed=config.run.seed,
    )


@dataclass
class Iteration:
    """What one iteration made, of P trees of N nodes and L leaves."""

    latents: dict[tuple[int, int], Tensor]  # (tree, node) → [*S] of parents and children trained
    leaves: Tensor  # [P, L, *S]
    log_prob: Tensor  # [P, N]
    reward: Tensor  # [P, N]
    advantage: Tensor  # [P, N] of trained edges, others 0
    keep: Tensor  # [P, N]
    gradient: Tensor  # of the last optimiser step, after clipping
    moved: Tensor  # weights after less weights before


def moved(model: Flux) -> Tensor:
    before = untrained().trainable()
    return torch.cat(
        [(now - before[name]).detach().flatten() for name, now in model.trainable().items()]
    )


def gradient(model: Flux) -> Tensor:
    return torch.cat([value.grad.detach().flatten() for value in model.trainable().values()])


def rewards_of(leaves: int) -> Tensor:
    """[P, L] like those of the recogniser."""
    draw = np.random.default_rng(1).random((len(TEXTS), leaves), dtype=np.float32)
    return torch.from_numpy(draw**2)


def by_the_engine(config: Config) -> Iteration:
    model = copy.deepcopy(untrained())
    plan, conditioning = (
        config.method.plan(ITERATION, config.schedule()),
        model.encode(records(TEXTS)),
    )
    topo = topology(plan)
    sampler = Sampler(model=model, seed=SEED, storage=torch.float32, max_batch=5)
    subtrees = tuple(Subtree(key, row, 0) for row, key in enumerate(KEYS))
    grown = sampler.grow(
        plan,
        subtrees=subtrees,
        x=sampler.roots(plan, subtrees),
        start=0,
        stop=plan.steps,
        conditioning=conditioning,
    )
    log_prob = torch.zeros(len(KEYS), topo.nodes)
    log_prob[:, torch.tensor(topo.stochastic)] = torch.from_numpy(grown.log_prob)
    rewards = rewards_of(topo.leaves)
    trees = [
        TreeHeader(
            key=key,
            prompt_index=row,
            policy_version=0,
            log_prob=log_prob[row].numpy(),
            leaf_reward=rewards[row].numpy(),
        )
        for row, key in enumerate(KEYS)
    ]
    credits = config.credit.assign(plan, trees, ITERATION, {})
    names = zip(grown.kept_subtree.tolist(), grown.kept_node.tolist(), strict=True)
    latents = dict(zip(names, grown.kept, strict=True))
    learn(config, plan, model, trees, credits, latents)
    return Iteration(
        latents=latents,
        leaves=grown.frontier.unflatten(0, (len(KEYS), -1)),
        log_prob=log_prob,
        reward=torch.from_numpy(np.stack([one.node_reward for one in credits])),
        advantage=torch.from_numpy(np.stack([one.advantage * one.keep for one in credits])),
        keep=torch.from_numpy(np.stack([one.keep for one in credits])),
        gradient=gradient(model),
        moved=moved(model),
    )


def learn(
    config: Config,
    plan: BranchPlan,
    model: Flux,
    trees: list[TreeHeader],
    credits: list[TreeCredit],
    latents: dict[tuple[int, int], Tensor],
) -> None:
    """The engine's update on one rank."""
    policy, steps = PolicyUpdate(config, model, 1), config.learner.optimiser_steps
    cond = model.conditioning(model.encode(records(TEXTS)))
    for (one,) in shard.split(
        plan, credits=credits, ranks=1, optimiser_steps=steps, seed=SEED + ITERATION
    ):
        batches = MicroBatches(
            plan,
            shard=one,
            trees=trees,
            latents=lambda tree, node: latents[tree, node],
            texts=lambda prompts: {name: array[list(prompts)] for name, array in cond.items()},
            size=7,
            device=torch.device("cpu"),
        )
        policy.step(plan, batches, Tally())


def by_the_example(config: Config) -> Iteration:
    module, s, model = example(), settings(config), copy.deepcopy(untrained())

    def draw(node: int, shared: bool) -> Tensor:
        one = partial(noise.draw, SEED, node=node, shape=model.latent_shape, stream=int(shared))
        return torch.stack([one(key=key) for key in KEYS])

    trees = module.grow(model, s, model.conditioning(model.encode(records(TEXTS))), draw)
    module.credit(s, trees, rewards_of(trees.x[-1].shape[1]))
    adam = torch.optim.AdamW(model.trainable().values(), s.learning_rate, weight_decay=1e-4)
    module.update(model, adam, s, trees, SEED + ITERATION)
    nodes = torch.cat(trees.x, 1)
    keep = torch.cat(trees.keep, 1)
    return Iteration(
        latents={(p, n): nodes[p, n] for p in range(len(nodes)) for n in range(nodes.shape[1])},
        leaves=trees.x[-1],
        log_prob=torch.cat(trees.log_prob, 1),
        reward=torch.cat(trees.reward, 1),
        advantage=torch.cat(trees.advantage, 1) * keep,
        keep=keep,
        gradient=gradient(model),
        moved=moved(model),
    )


def apart(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference, as a part of what it should be."""
    assert found.shape == wanted.shape
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("case", CASES)
def test_the_engine_and_the_example_agree(case: str) -> None:
    config = quickstart(COMMON | CASES[case])
    wanted, found = by_the_engine(config), by_the_example(config)
    for name, latent in wanted.latents.items():
        torch.testing.assert_close(found.latents[name], latent, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(found.leaves, wanted.leaves, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(found.log_prob, wanted.log_prob, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.reward, wanted.reward, rtol=1e-4, atol=1e-6)
    assert torch.equal(found.keep, wanted.keep)
    torch.testing.assert_close(found.advantage, wanted.advantage, rtol=1e-4, atol=1e-4)
    assert apart(found.gradient, wanted.gradient) < 1e-4
    assert apart(found.moved, wanted.moved) < 1e-3


def test_cases_prune_weigh_and_clip() -> None:
    """Or those above would show nothing of it."""
    steps = CASES["three optimiser steps"]
    plain, pruned, weighed, clipped, free = (
        by_the_engine(quickstart(COMMON | case))
        for case in (
            {},
            CASES["width pruning"],
            CASES["likelier paths weigh more"],
            steps,
            steps | {"loss.clip_range": "1"},
        )
    )
    assert pruned.keep.sum() < plain.keep.sum()
    assert apart(weighed.reward, plain.reward) > 1e-2
    assert apart(clipped.moved, free.moved) > 0.1


def test_its_settings_are_those_of_the_preset() -> None:
    config = configs.load(QUICKSTART, {"learner.learning_rate": "7e-5"}, "branchgrpo")
    wanted = vars(settings(config))
    assert vars(example().Settings()) == wanted | {"prompts": config.rollout.prompts}


def test_it_is_short() -> None:
    assert len(FILE.read_text(encoding="utf-8").splitlines()) <= 200
