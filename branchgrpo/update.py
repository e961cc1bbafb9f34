"""The policy update: clipped loss over shards of sibling-shared parents, then AdamW."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from branchgrpo import kernels
from branchgrpo.config import Config
from branchgrpo.models.base import Adapter
from branchgrpo.tree import topology
from branchgrpo.types import BranchPlan, LearnerShard, TreeHeader

Sum = Callable[[Tensor], Tensor]
"""All-reduce by sum over the learner ranks; the identity for one rank."""

Latents = Callable[[int, int], Tensor]
"""(tree, node) → its stored latents [*S]."""


@dataclass
class Tally:
    """Sums over edges and parents of an iteration, this rank's until `reduced`."""

    loss: float = 0.0
    deviation: float = 0.0
    clipped: float = 0.0
    edges: float = 0.0
    forwards: float = 0.0

    def reduced(self, add: Sum) -> Tally:
        """Summed over ranks."""
        values = add(torch.tensor([self.loss, self.deviation, self.clipped, self.edges, self.forwards], dtype=torch.float64))
        return Tally(*values.tolist())


class PolicyUpdate:
    """Trains one adapter; the same on every rank."""

    def __init__(self, config: Config, model: Adapter, ranks: int):
        self.config, self.model, self.ranks = config, model, ranks
        self.parameters = list(model.trainable().values())
        options = config.learner
        self.optimiser = torch.optim.AdamW(self.parameters, lr=options.learning_rate, betas=options.betas, weight_decay=options.weight_decay)

    def log_ratio(self, plan: BranchPlan, rows: Rows) -> tuple[Tensor, Tensor]:
        """(log-prob, behaviour log-prob) [n, K] of edges; missing children have both equal."""
        v = self.model.velocity(rows.x, rows.sigma, rows.cond)
        mean, std = kernels.transition(plan, rows.steps, rows.x, v)
        columns = [kernels.log_prob(rows.y[:, child], mean, std) for child in range(rows.y.shape[1])]
        log_prob = torch.stack(columns, 1)
        return log_prob, torch.where(rows.present, rows.old, log_prob.detach())

    def deviation(self, plan: BranchPlan, batches: list[Rows]) -> float:
        """max |ratio − 1| over this rank's edges, without a gradient; 0 when it has none."""
        worst = 0.0
        with torch.no_grad():
            for rows in batches:
                new, old = self.log_ratio(plan, rows)
                worst = max(worst, float((torch.exp(new - old) - 1).abs().max()))
        return worst

    def step(self, plan: BranchPlan, batches: list[Rows], tally: Tally) -> float:
        """One optimiser step over this rank's batches; returns the gradient norm before clipping.

        Every rank must bring as many batches. A norm that is not finite leaves the weights alone: it is the
        same on all ranks after the all-reduce, so all skip together.
        """
        self.optimiser.zero_grad(set_to_none=True)
        for index, rows in enumerate(batches):
            last = index == len(batches) - 1
            hold = getattr(self.model.denoiser, "no_sync", nullcontext) if not last else nullcontext
            with hold():
                new, old = self.log_ratio(plan, rows)
                loss, ratio, clipped = self.config.loss(new, old, rows.advantage)
                total = (loss * rows.weight).sum()
                (total * self.ranks).backward()  # type: ignore[no-untyped-call]  # DDP averages over ranks
            real = rows.present & (rows.weight > 0)
            tally.loss += float(total.detach())
            tally.deviation += float(((ratio - 1).abs() * real).sum())
            tally.clipped += float((clipped & real).sum())
            tally.edges += float(real.sum())
            tally.forwards += float(real.any(1).sum())
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.learner.max_grad_norm))
        if np.isfinite(norm):
            self.optimiser.step()
        return norm


@dataclass
class Rows:
    """A micro-batch of n parents with up to K children each, on the device."""

    x: Tensor  # [n, *S] parents
    y: Tensor  # [n, K, *S] children
    sigma: Tensor  # [n]
    steps: Tensor  # [n] long
    cond: dict[str, Tensor]  # [n, …]
    old: Tensor  # [n, K] behaviour log-prob
    advantage: Tensor  # [n, K]
    weight: Tensor  # [n, K]
    present: Tensor  # [n, K] bool: there is such a child


def micro_batches(
    plan: BranchPlan, shard: LearnerShard, trees: list[TreeHeader], latents: Latents, cond: dict[str, Tensor], size: int, device: torch.device
) -> list[Rows]:
    """A shard as micro-batches of at most `size` parents."""
    topo, batches = topology(plan), []
    for first in range(0, len(shard.parents), size):
        part = slice(first, first + size)
        parents, edges = shard.parents[part], shard.edges[part]
        steps = torch.from_numpy(topo.step[edges[:, 0]].astype(np.int64)).to(device)
        x = torch.stack([latents(tree, node) for tree, node in parents.tolist()]).to(device)
        y = torch.stack(
            [
                torch.stack([latents(tree, child if child >= 0 else node) for child in row])
                for (tree, node), row in zip(parents.tolist(), edges.tolist(), strict=True)
            ]
        ).to(device)
        old = np.array([trees[tree].log_prob[row] for (tree, _), row in zip(parents.tolist(), edges, strict=True)], np.float32)
        prompt = torch.tensor([trees[tree].prompt for tree in parents[:, 0]], device=device)
        move = [torch.from_numpy(array).to(device) for array in (old, shard.advantage[part], shard.weight[part], edges >= 0)]
        levels = torch.from_numpy(plan.sigmas).to(device)
        batches.append(Rows(x, y, levels[steps], steps, {name: array[prompt] for name, array in cond.items()}, *move))
    return batches
