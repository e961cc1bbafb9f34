"""The policy update: the loss over shards of sibling-shared parents, then AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from branchgrpo.algo import kernels
from branchgrpo.algo.loss.base import Edges
from branchgrpo.config.roles import Learner
from branchgrpo.config.schema import Config
from branchgrpo.learner.batches import MicroBatch
from branchgrpo.learner.fsdp import full
from branchgrpo.models.base import Adapter
from branchgrpo.types import BranchPlan

Sum = Callable[[Tensor], Tensor]
"""All-reduce by sum over the learner ranks; the identity for one rank."""


@dataclass
class Tally:
    """Sums over edges and parents of an iteration, this rank's until `reduced`."""

    loss: float = 0.0
    deviation: float = 0.0
    clipped: float = 0.0
    kl: float = 0.0
    edges: float = 0.0
    forwards: float = 0.0

    def reduced(self, add: Sum) -> Tally:
        """Summed over ranks."""
        values = add(torch.tensor(list(vars(self).values()), dtype=torch.float64))
        return Tally(*values.tolist())


def rate_factor(options: Learner, step: int, total: int) -> float:
    """What the learning rate is multiplied by at optimiser step `step` (from 0) of `total`: linear
    warm-up, then the schedule."""
    if step < options.warmup:
        return (step + 1) / options.warmup
    progress = min(1.0, (step - options.warmup) / max(1, total - options.warmup))
    if options.schedule == "constant":
        return 1.0
    fall = progress if options.schedule == "linear" else 0.5 * (1.0 - math.cos(math.pi * progress))
    return 1.0 - (1.0 - options.final_rate) * fall


def ema_decay(decay: float, taken: int) -> float:
    """Decay of the weights' mean after so many optimiser steps: warms up, or the mean would be the
    untrained model for long."""
    return min((1 + taken) / (10 + taken), decay)


class PolicyUpdate:
    """Trains one adapter; the same on every rank."""

    def __init__(self, config: Config, model: Adapter, ranks: int):
        self.config = config
        self.model = model
        self.ranks = ranks
        trainable, options = model.trainable(), config.learner
        self.names, self.parameters = list(trainable), list(trainable.values())
        # In bfloat16 most steps of AdamW would round to nothing: such weights follow float32
        # masters.
        self.masters = [
            value if value.dtype == torch.float32 else value.detach().float()
            for value in self.parameters
        ]
        self.optimiser = torch.optim.AdamW(
            self.masters,
            lr=options.learning_rate,
            betas=options.betas,
            weight_decay=options.weight_decay,
        )
        total = config.run.iterations * options.optimiser_steps
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser, lambda step: rate_factor(options, step, total)
        )
        self.learning_rate = 0.0  # of the last optimiser step
        self.ema = (
            {
                name: value.detach().clone()
                for name, value in zip(trainable, self.masters, strict=True)
            }
            if options.ema
            else {}
        )

    def edges(self, plan: BranchPlan, rows: MicroBatch) -> tuple[Edges, Tensor]:
        """The edges of a micro-batch as a loss takes them, and μ [n, *S]. Missing children have
        both log-probs equal."""
        v = self.model.velocity(rows.x, rows.sigma, rows.cond)
        mean, std = kernels.transition(plan, rows.steps, rows.x, v)
        columns = [
            kernels.log_prob(rows.y[:, child], mean, std) for child in range(rows.y.shape[1])
        ]
        log_prob = torch.stack(columns, 1)
        old = torch.where(rows.present, rows.old, log_prob.detach())
        std = std.flatten(1)
        mean_drift = torch.zeros_like(std)
        if rows.velocity is not None:
            behaviour, _ = kernels.transition(plan, rows.steps, rows.x, rows.velocity)
            mean_drift = _distance(mean, behaviour)
        levels = torch.from_numpy(plan.sigmas).to(std.device)
        return Edges(
            log_prob=log_prob,
            old_log_prob=old,
            advantage=rows.advantage,
            std=std,
            dt=(levels[rows.steps + 1] - levels[rows.steps])[:, None],
            mean_drift=mean_drift,
        ), mean

    def kl(self, plan: BranchPlan, rows: MicroBatch, mean: Tensor, std: Tensor) -> Tensor:
        """[n, 1] KL of the transition to that of the frozen base, mean over dimensions: ‖μ −
        μ_base‖²/(2·std²)."""
        base, _ = kernels.transition(
            plan, rows.steps, rows.x, self.model.base_velocity(rows.x, rows.sigma, rows.cond)
        )
        return _distance(mean, base) / (2.0 * std**2)

    def deviation(self, plan: BranchPlan, batches: list[MicroBatch]) -> float:
        """max |ratio − 1| over this rank's edges, without a gradient; 0 when it has none, infinite
        where a ratio is not finite."""
        worst = 0.0
        with torch.no_grad():
            for rows in batches:
                edges, _ = self.edges(plan, rows)
                found = (torch.exp(edges.log_prob - edges.old_log_prob) - 1).abs()
                worst = max(worst, float(found.nan_to_num(nan=math.inf).max()))
        return worst

    def step(self, plan: BranchPlan, batches: list[MicroBatch], tally: Tally) -> float:
        """One optimiser step over this rank's batches; returns the gradient norm before clipping.

        Every rank must bring as many batches. A norm that is not finite leaves the weights alone:
        it is the same on all ranks after the all-reduce, so all skip together.
        """
        for value in (*self.masters, *self.parameters):
            value.grad = None
        for index, rows in enumerate(batches):
            last = index == len(batches) - 1
            # DDP sums gradients once, in the last micro-batch; sharded weights after each, or a
            # rank would hold all gradients
            hold = getattr(self.model.denoiser, "no_sync", nullcontext) if not last else nullcontext
            with hold():
                self._backward(plan, rows, tally)
        for master, value in zip(self.masters, self.parameters, strict=True):
            if master is not value and value.grad is not None:
                master.grad = value.grad.float()
        norm = float(
            full(torch.nn.utils.clip_grad_norm_(self.masters, self.config.learner.max_grad_norm))
        )
        if np.isfinite(norm):
            self.learning_rate = float(self.scheduler.get_last_lr()[0])
            taken = int(self.scheduler.last_epoch)  # before this one
            self.optimiser.step()
            self.scheduler.step()
            self.follow()
            self._average(taken)
        return norm

    def named_masters(self) -> dict[str, Tensor]:
        """What AdamW moves, by the parameters' names."""
        return dict(zip(self.names, self.masters, strict=True))

    def follow(self) -> None:
        """Set the model's weights to their masters."""
        with torch.no_grad():
            for master, value in zip(self.masters, self.parameters, strict=True):
                if master is not value:
                    value.copy_(master)

    def _backward(self, plan: BranchPlan, rows: MicroBatch, tally: Tally) -> None:
        beta = self.config.loss.kl_beta
        edges, mean = self.edges(plan, rows)
        loss, ratio, clipped = self.config.loss(edges)
        real = rows.present & (rows.weight > 0)
        if beta:
            kl = self.kl(plan, rows, mean, edges.std)
            loss = loss + beta * kl
            tally.kl += float((kl.detach() * real).sum())
        total = (loss * rows.weight).sum()
        (total * self.ranks).backward()  # type: ignore[no-untyped-call]  # DDP averages over ranks
        tally.loss += float(total.detach())
        tally.deviation += float(((ratio - 1).abs() * real).sum())
        tally.clipped += float((clipped & real).sum())
        tally.edges += float(real.sum())
        tally.forwards += float(real.any(1).sum())

    def _average(self, taken: int) -> None:
        """Move the exponential mean of the weights, every `ema_every` steps; `taken`: optimiser
        steps before this one."""
        options = self.config.learner
        if not self.ema or (taken + 1) % options.ema_every:
            return
        decay = ema_decay(options.ema, taken)
        with torch.no_grad():
            for mean, value in zip(self.ema.values(), self.masters, strict=True):
                mean.lerp_(value, 1.0 - decay)


def _distance(mean: Tensor, other: Tensor) -> Tensor:
    """[n, 1] mean over dimensions of the squared difference."""
    return (mean - other).square().flatten(1).mean(1, keepdim=True)
