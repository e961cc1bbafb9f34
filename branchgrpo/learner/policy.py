"""The policy update: the loss over shards of sibling-shared parents, then AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass

import numpy as np
import torch
from torch import Tensor

from branchgrpo.algo import kernels
from branchgrpo.algo.loss.base import Edges
from branchgrpo.config.schema import Config
from branchgrpo.learner.batches import MicroBatch, MicroBatches
from branchgrpo.learner.fsdp import full
from branchgrpo.learner.gradients import GradientSums
from branchgrpo.learner.portions import Batches, Portions, Taken
from branchgrpo.learner.rates import ema_decay, rate_factor
from branchgrpo.learner.second import SecondWeights
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
    halved: float = 0.0  # how often micro-batches were, for want of memory

    def add(self, **sums: Tensor) -> None:
        """Add the sums of a micro-batch, which are read from its device at once."""
        values = torch.stack([value.detach().double() for value in sums.values()]).tolist()
        for name, value in zip(sums, values, strict=True):
            setattr(self, name, getattr(self, name) + value)

    def reduced(self, add: Sum) -> Tally:
        """Summed over ranks."""
        values = add(torch.tensor(astuple(self), dtype=torch.float64))
        return Tally(*values.tolist())


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
            fused=model.device.type == "cuda",
        )
        self.gradients = GradientSums(self.parameters, self.masters, ranks)
        self.portions = Portions(options.micro_batch, model.device, self.gradients.sharded)
        # |ratio − 1| of the iteration's first micro-batch; none before it
        self.first_ratio: float | None = None
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
        self.second: SecondWeights | None = None  # where the loss has some
        if config.loss.second != "none":
            self.second = SecondWeights(self.named_masters(), dict(trainable))

    def edges(self, plan: BranchPlan, rows: MicroBatch) -> tuple[Edges, Tensor]:
        """The edges of a micro-batch as a loss takes them, and μ [n, *S]. Missing children have
        both log-probs equal."""
        v = self.model.velocity(rows.x, rows.sigma, rows.cond)
        mean, std = kernels.transition(plan, rows.steps, rows.x, v)
        log_prob = _log_probs(rows, mean, std)
        old, behaviour = self._old(rows, log_prob.detach(), v.detach())
        std = std.flatten(1)
        mean_drift = torch.zeros_like(std)
        if behaviour is not None:
            mean_drift = _distance(mean, kernels.transition(plan, rows.steps, rows.x, behaviour)[0])
        levels = torch.tensor(plan.sigmas, device=std.device)
        return Edges(
            log_prob=log_prob,
            old_log_prob=torch.where(rows.present, old, log_prob.detach()),
            advantage=rows.advantage,
            std=std,
            dt=(levels[rows.steps + 1] - levels[rows.steps])[:, None],
            mean_drift=mean_drift,
        ), mean

    def _old(
        self, rows: MicroBatch, log_prob: Tensor, velocity: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """(log-prob [n, K], velocity [n, *S] where the loss needs it) on the ratio's old side; of
        the present policy as given, unless it was taken down before."""
        if self.config.learner.old == "behaviour":
            return rows.old, rows.velocity
        if rows.own is not None:
            return rows.own.log_prob, rows.own.velocity
        return log_prob, velocity if self.config.loss.needs_behaviour_mean else None

    def kl(self, plan: BranchPlan, rows: MicroBatch, mean: Tensor, std: Tensor) -> Tensor:
        """[n, 1] KL of the transition to that of the frozen base, mean over dimensions: ‖μ −
        μ_base‖²/(2·std²)."""
        base, _ = kernels.transition(
            plan, rows.steps, rows.x, self.model.base_velocity(rows.x, rows.sigma, rows.cond)
        )
        return _divergence(mean, base, std)

    def deviation(self, plan: BranchPlan, batches: MicroBatches, tally: Tally) -> float:
        """max |ratio − 1| to the behaviour policy over this rank's edges, without a gradient; 0
        when it has none, infinite where a ratio is not finite."""
        worst = 0.0

        def measure(first: int, rows: MicroBatch) -> None:
            nonlocal worst
            log_prob, _ = self._without_gradient(plan, rows)
            worst = max(worst, _ratio_error(rows, log_prob))

        tally.halved += self.portions.run(batches, measure)
        return worst

    def begin(self, plan: BranchPlan, steps: list[MicroBatches], tally: Tally) -> None:
        """Begin an iteration of these optimiser steps: where the ratio's old side is recomputed,
        take it down of the present weights for all but the first step, whose own forwards are
        under them."""
        self.first_ratio = None
        keep = self.config.loss.needs_behaviour_mean
        for batches in steps[1:] if self.config.learner.old == "recompute" else []:

            def measure(first: int, rows: MicroBatch, batches: MicroBatches = batches) -> None:
                log_prob, v = self._without_gradient(plan, rows)
                batches.keep_own(first, log_prob, v if keep else None)

            tally.halved += self.portions.run(batches, measure)

    def step(self, plan: BranchPlan, batches: MicroBatches, tally: Tally) -> float:
        """One optimiser step over this rank's parents, see `descend`."""
        return self.descend(batches, lambda _, rows: self._backward(plan, rows, tally), tally)

    def descend(
        self, batches: Batches[Taken], work: Callable[[int, Taken], None], tally: Tally
    ) -> float:
        """One optimiser step by the gradients of `work`, which calls `backward` for each
        micro-batch; returns the gradient norm before clipping.

        Ranks with whole weights may bring different numbers of micro-batches, those with shards
        must bring as many. A norm that is not finite leaves the weights alone: it is the same on
        all ranks after the all-reduce, so all skip together.
        """

        def fresh(first: int, rows: Taken) -> None:
            self.gradients.drop()  # what one that did not fit has left
            work(first, rows)

        self.gradients.begin()
        tally.halved += self.portions.run(batches, fresh)
        self.gradients.finish()
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

    def _without_gradient(self, plan: BranchPlan, rows: MicroBatch) -> tuple[Tensor, Tensor]:
        """(log-prob [n, K], velocity [n, *S]) of the present policy."""
        v = self._plain(rows)
        mean, std = kernels.transition(plan, rows.steps, rows.x, v)
        return _log_probs(rows, mean, std), v

    def _plain(self, rows: MicroBatch) -> Tensor:
        """Velocity [n, *S] without a gradient."""
        with torch.no_grad(), self.model.without_gradient():
            return self.model.velocity(rows.x, rows.sigma, rows.cond).detach()

    def _second_mean(self, plan: BranchPlan, rows: MicroBatch) -> Tensor:
        """μ [n, *S] of the transition under the second weights."""
        assert self.second is not None
        with self.second.shown():
            v = self._plain(rows)
        return kernels.transition(plan, rows.steps, rows.x, v)[0]

    def named(self, weights: str) -> Mapping[str, Tensor]:
        """By name: the model's own weights (`policy`), their mean (`ema`), or the loss' `second`
        set. Raises KeyError where there is none."""
        if weights == "policy":
            return dict(zip(self.names, self.parameters, strict=True))
        kept = {"ema": self.ema} | ({"second": self.second.tensors} if self.second else {})
        return kept[weights]

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
        beta, penalty = self.config.loss.kl_beta, self.config.loss.mean_penalty
        # ahead of the forward whose backward is to come: it holds the weights
        held = self._second_mean(plan, rows) if penalty else None
        edges, mean = self.edges(plan, rows)
        loss, ratio, clipped = self.config.loss(edges)
        real = rows.present & (rows.weight > 0)
        kl = torch.zeros_like(edges.std)
        if beta:
            kl = self.kl(plan, rows, mean, edges.std)
            loss = loss + beta * kl
        if held is not None:
            loss = loss + penalty * _divergence(mean, held, edges.std)
        total = (loss * rows.weight).sum()
        self.backward(total)
        if self.first_ratio is None:
            self.first_ratio = _ratio_error(rows, edges.log_prob.detach())
        tally.add(
            loss=total,
            kl=(kl.detach() * real).sum(),
            deviation=((ratio - 1).abs() * real).sum(),
            clipped=(clipped & real).sum(),
            edges=real.sum(),
            forwards=real.any(1).sum(),
        )

    def backward(self, total: Tensor) -> None:
        """Add the gradient of a micro-batch's part of the loss."""
        # FSDP2 averages over ranks
        factor = self.ranks if self.gradients.sharded else 1
        (total * factor).backward()  # type: ignore[no-untyped-call]
        self.gradients.add()

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


def _log_probs(rows: MicroBatch, mean: Tensor, std: Tensor) -> Tensor:
    """[n, K] of the children, whose transition has mean μ [n, *S] and std [n, 1, …]."""
    children = rows.y.unbind(1)
    return torch.stack([kernels.log_prob(child, mean, std) for child in children], 1)


def _ratio_error(rows: MicroBatch, log_prob: Tensor) -> float:
    """max |ratio − 1| of [n, K] to the behaviour policy; infinite where a ratio is not finite."""
    ratio = torch.exp(log_prob - torch.where(rows.present, rows.old, log_prob))
    return float((ratio - 1).abs().nan_to_num(nan=math.inf).max())


def _distance(mean: Tensor, other: Tensor) -> Tensor:
    """[n, 1] mean over dimensions of the squared difference."""
    return (mean - other).square().flatten(1).mean(1, keepdim=True)


def _divergence(mean: Tensor, other: Tensor, std: Tensor) -> Tensor:
    """[n, 1] KL between transitions of one std [n, 1], mean over dimensions."""
    return _distance(mean, other) / (2.0 * std**2)
