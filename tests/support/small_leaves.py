"""Leaves of separate chains, grown with a model of a few weights, and a policy that trains on
them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from branchgrpo.algo import noise
from branchgrpo.algo.tree import assemble
from branchgrpo.config.schema import Config
from branchgrpo.learner.payloads import PayloadStore
from branchgrpo.learner.points import PointBatches
from branchgrpo.learner.policy import PolicyUpdate, Tally
from branchgrpo.learner.training import LeafTraining, Task
from branchgrpo.models import weights as wire
from branchgrpo.rollout.sampler import Sampler
from branchgrpo.types import BranchPlan, PointShard, SegmentHeader, Subtree, TreeKey, TreePayload
from support.records import records
from support.small_adapter import SmallAdapter
from support.small_trees import quickstart

CHAINS = "{name: chains, chains: 4, root: private, stochastic: none}"
OPTIONS = {
    "method": CHAINS,
    "advantage": "{name: group}",
    "sampling.steps": "5",
    "learner.max_grad_norm": "1.0e9",
    "learner.warmup": "0",
    "learner.schedule": "constant",
}
PROMPTS = 3


class LeafCase:
    """Three prompts of four leaves. The policy's weights, its second ones and the base differ."""

    def __init__(self, loss: str, ranks: int = 1, **overrides: str):
        self.config: Config = quickstart(OPTIONS | {"loss": loss} | overrides)
        self.model = SmallAdapter()
        self.plan: BranchPlan = self.config.method.plan(0, self.config.schedule())
        self.texts = self.model.encode(records(["a"] * PROMPTS))
        self.subtrees = tuple(
            Subtree(TreeKey("test", 0, 10 + prompt, tree), prompt, 0)
            for prompt in range(PROMPTS)
            for tree in range(self.plan.chains)
        )
        self.header, self.payload = self._grown()
        self.model.freeze_base()
        self._move(self.model.trainable(), 0.03, 1)
        self.policy = PolicyUpdate(self.config, self.model, 1)
        if self.policy.second is not None:
            self._move(self.policy.second.tensors, 0.05, 2)
        self.training = LeafTraining(self.config, self.policy)
        leaves = self.payload.latents.shape[0] // len(self.subtrees)
        draw = np.random.default_rng(5)
        scores = {
            (one.prompt_index, one.key.tree): draw.normal(size=(1, leaves)).astype(np.float32)
            for one in self.subtrees
        }
        trees = assemble(self.plan, [self.header], self.config.credit.leaf_rewards(scores))
        credits = self.config.credit.assign(self.plan, trees, 0, scores)
        self.task = Task(plan=self.plan, iteration=0, trees=trees, credits=credits)

    def _grown(self) -> tuple[SegmentHeader, TreePayload]:
        sampler = Sampler(self.model, seed=0, storage=torch.float32, max_batch=64)
        segment = sampler.grow(
            self.plan,
            subtrees=self.subtrees,
            x=sampler.roots(self.plan, self.subtrees),
            start=0,
            stop=self.plan.steps,
            conditioning=self.texts,
            clean=True,
        )
        latents, dtype = wire.to_numpy(segment.kept)
        payload = TreePayload(
            subtree=segment.kept_subtree,
            node=segment.kept_node,
            latents=latents,
            dtype=dtype,
            parent=segment.parent_row,
            velocity=segment.velocity.numpy(),
        )
        header = SegmentHeader(
            subtrees=self.subtrees,
            start=0,
            stop=self.plan.steps,
            policy_version=0,
            log_prob=segment.log_prob,
            forwards=segment.forwards,
            payload_bytes=latents.nbytes,
        )
        return header, payload

    @staticmethod
    @torch.no_grad()
    def _move(tensors: Any, size: float, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        for value in tensors.values():
            value.add_(size * torch.randn(value.shape, generator=draw))

    def shards(self, ranks: int = 1) -> list[list[PointShard]]:
        return self.training.shards(self.task, ranks)

    def batches(self, shard: PointShard, size: int = 64) -> PointBatches:
        store = PayloadStore(
            list, self.plan, self.task.trees, [(self.header, self.payload)], [shard]
        )
        text = torch.from_numpy(self.texts.arrays["text"])
        return self.training.batches(
            self.task, shard, store, lambda rows: {"text": text[list(rows)]}, size=size
        )

    def update(self, size: int = 64, ranks: int = 1) -> tuple[Tensor, Tally]:
        """The gradient of the first optimiser step, summed over as many ranks; and the tally."""
        tally, total = Tally(), torch.zeros(())
        for shard in self.shards(ranks)[0]:
            other = copy.deepcopy(self.policy.masters)
            self.training.step(self.task, self.batches(shard, size), tally)
            gradient = [value.grad for value in self.policy.masters]
            total = total + torch.cat(
                [
                    torch.zeros_like(value).flatten() if one is None else one.flatten()
                    for one, value in zip(gradient, other, strict=True)
                ]
            )
            with torch.no_grad():  # each rank's step begins at the same weights
                for value, kept in zip(self.policy.masters, other, strict=True):
                    value.copy_(kept)
        return total.double(), tally


def drawn_points(case: LeafCase) -> dict[str, Any]:
    """Every point of the task by the loss' own draws, in float64: x0, noise, level, advantage, text
    and group."""
    found: dict[str, Any] = {
        name: [] for name in ("x0", "noise", "level", "advantage", "text", "group")
    }
    text = torch.from_numpy(case.texts.arrays["text"]).double()
    loss, seed = case.training.loss, case.config.run.seed
    rows = {
        (int(subtree), int(node)): torch.from_numpy(latent).double()
        for subtree, node, latent in zip(
            case.payload.subtree, case.payload.node, case.payload.latents, strict=True
        )
    }
    for tree, (header, credit) in enumerate(zip(case.task.trees, case.task.credits, strict=True)):
        for node in np.flatnonzero(credit.keep).tolist():
            key, owner = header.key, node
            if loss.grouped:  # its prompt's draws
                key, owner = TreeKey(key.run, key.iteration, key.prompt, 0), 0
            levels = loss.levels(case.plan.sigmas, noise.levels(seed, key, owner))
            for index, level in enumerate(levels.tolist()):
                x0 = rows[tree, node]
                found["x0"].append(x0)
                found["noise"].append(
                    noise.added(seed, key, owner, index=index, shape=tuple(x0.shape)).double()
                )
                found["level"].append(level)
                found["advantage"].append(float(credit.advantage[node]))
                found["text"].append(text[header.prompt_index])
                found["group"].append((header.prompt_index, index))
    for name in ("x0", "noise", "text"):
        found[name] = torch.stack(found[name])
    return found
