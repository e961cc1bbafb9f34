"""Each loss on leaves, from rollout to update, on a reward whose direction is known: the model of a
cloud of points learns to draw points further along one axis."""

from __future__ import annotations

import pytest
import torch
from support.records import records
from support.small_adapter import SIZE, SmallAdapter
from support.small_leaves import OPTIONS
from support.small_trees import quickstart
from torch import Tensor

from branchgrpo.algo.plan import ode_plan
from branchgrpo.algo.tree import assemble
from branchgrpo.config.schema import Config
from branchgrpo.learner.payloads import PayloadStore
from branchgrpo.learner.policy import PolicyUpdate, Tally
from branchgrpo.learner.shown import Shown
from branchgrpo.learner.training import Task, training_of
from branchgrpo.models import weights as wire
from branchgrpo.rollout.sampler import Sampler, Segment
from branchgrpo.types import BranchPlan, SegmentHeader, Subtree, TreeKey, TreePayload

TREE = "{name: branchgrpo, splits: [0, 1, 2]}"
CASES = {
    "nft": {"loss": "{name: nft}"},
    "awm": {"loss": "{name: awm}", "learner.optimiser_steps": "2"},
    "dgpo": {"loss": "{name: dgpo, clip_range: 0.1}"},
    "crd": {"loss": "{name: crd}"},
    "nft on trees": {"loss": "{name: nft}", "method": TREE, "advantage": "{name: depthwise}"},
    "awm on trees": {"loss": "{name: awm}", "method": TREE},
}
PROMPTS = 4


def fitted() -> SmallAdapter:
    """The velocity of points N(0, ¼), by flow matching."""
    model = SmallAdapter(2)
    optimiser = torch.optim.Adam(model.denoiser.parameters(), lr=0.02)
    draw = torch.Generator().manual_seed(0)
    for _ in range(100):
        x0, added = 0.5 * torch.randn(256, SIZE, generator=draw), torch.randn(256, SIZE)
        t = torch.rand(256, generator=draw)
        x = (1 - t[:, None]) * x0 + t[:, None] * added
        v = model.velocity(x, t, {"text": torch.randn(256, 3, generator=draw)})
        optimiser.zero_grad()
        (v - (added - x0)).square().mean().backward()
        optimiser.step()
    return model


class Run:
    """Rollouts and updates of one model."""

    def __init__(self, config: Config):
        self.config, self.model = config, fitted()
        self.model.freeze_base()
        self.policy = PolicyUpdate(config, self.model, 1)
        self.training, self.shown = training_of(config, self.policy), Shown(self.policy)
        self.sampler = Sampler(self.model, seed=0, storage=torch.float32, max_batch=256)
        self.texts = self.model.encode(records(["a"] * PROMPTS))

    def grown(
        self, plan: BranchPlan, iteration: int, weights: str
    ) -> tuple[Segment, list[Subtree]]:
        trees = [
            Subtree(TreeKey("run", iteration, prompt, tree), prompt, 0)
            for prompt in range(PROMPTS)
            for tree in range(plan.chains)
        ]
        self.shown.show(weights)
        segment = self.sampler.grow(
            plan,
            subtrees=tuple(trees),
            x=self.sampler.roots(plan, tuple(trees)),
            start=0,
            stop=plan.steps,
            conditioning=self.texts,
            clean=True,
        )
        self.shown.show("policy")
        return segment, trees

    def update(self, iteration: int) -> None:
        plan = self.config.method.plan(iteration, self.config.schedule())
        segment, trees = self.grown(plan, iteration, self.config.grown_with)
        header = SegmentHeader(
            subtrees=tuple(trees),
            start=0,
            stop=plan.steps,
            policy_version=iteration,
            log_prob=segment.log_prob,
            forwards=segment.forwards,
            payload_bytes=0,
        )
        payload = TreePayload(
            subtree=segment.kept_subtree,
            node=segment.kept_node,
            latents=wire.to_numpy(segment.kept)[0],
            dtype="float32",
            parent=segment.parent_row,
            velocity=segment.velocity.numpy(),
        )
        rewards = reward(segment.frontier).view(len(trees), 1, -1).numpy()
        scores = {
            (one.prompt_index, one.key.tree): row for one, row in zip(trees, rewards, strict=True)
        }
        credit = self.config.credit
        headers = assemble(plan, [header], credit.leaf_rewards(scores))
        credits = credit.assign(plan, headers, iteration, scores)
        task = Task(plan=plan, iteration=iteration, trees=headers, credits=credits)
        text, tally = torch.from_numpy(self.texts.arrays["text"]), Tally()
        shards = [ranks[0] for ranks in self.training.shards(task, 1)]
        store = PayloadStore(list, plan, headers, [(header, payload)], shards)
        steps = [
            self.training.batches(
                task, shard, store, lambda rows: {"text": text[list(rows)]}, size=64
            )
            for shard in shards
        ]
        self.training.begin(task, steps, tally)
        for batches in steps:
            self.training.step(task, batches, tally)
        self.training.end(task)

    def mean(self) -> float:
        """Of the reward, of the policy's own points by 10 steps."""
        plan = ode_plan(self.config.schedule(10))
        found = [self.grown(plan, 1000 + at, "policy")[0].frontier for at in range(8)]
        return float(reward(torch.cat(found)).mean())


def reward(x0: Tensor) -> Tensor:
    """Along the first axis."""
    return x0[:, 0]


@pytest.mark.parametrize("name", CASES)
def test_the_reward_rises(name: str) -> None:
    keys = OPTIONS | {
        "method": "{name: chains, chains: 8, root: private, stochastic: none}",
        "learner.learning_rate": "0.006",
        "learner.max_grad_norm": "1.0",
    }
    run = Run(quickstart(keys | CASES[name]))
    before = run.mean()
    for iteration in range(12):
        run.update(iteration)
    # the points' own spread is ½
    assert run.mean() > before + 0.12
