"""Losses of the forward process over micro-batches of noised leaves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from branchgrpo.algo.loss.forward import ForwardLoss, Points
from branchgrpo.learner.points import PointBatch, PointBatches
from branchgrpo.learner.portions import Portions
from branchgrpo.learner.second import SecondWeights
from branchgrpo.models.base import Adapter


class ForwardPass:
    """One adapter's velocities at noised leaves, and what the loss makes of them."""

    def __init__(self, loss: ForwardLoss, model: Adapter, second: SecondWeights | None):
        self.options, self.model, self.second = loss, model, second

    def begin(self, steps: Sequence[PointBatches], portions: Portions) -> int:
        """Before an iteration of these optimiser steps: scores under the present weights, where the
        loss wants them, for all but the first step, whose own forwards are under them. Returns how
        often micro-batches were halved."""
        if self.options.scored != "iteration":
            return 0
        return sum(portions.run(batches, partial(self._score, batches)) for batches in steps[1:])

    def prepare(self, batches: PointBatches, portions: Portions) -> int:
        """Before an optimiser step: scores of its points and their means by group, where the loss
        wants them. Returns how often micro-batches were halved."""
        if self.options.scored != "step" or not len(batches):
            return 0
        halved = portions.run(batches, partial(self._score, batches))
        batches.compare()
        return halved

    def loss(self, rows: PointBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """(Σ weight · loss, with its gradient; sums for the tally)."""
        needs, beta = self.options.needs, self.options.kl_beta
        # ahead of the forward whose backward is to come: it holds the weights
        base = self._base(rows) if beta or "base" in needs else None
        second = self._second(rows) if "second" in needs else None
        v = self.model.velocity(rows.x, rows.t, rows.cond).float()
        points = self._points(rows, v, base=base, second=second)
        loss, ratio, cut = self.options(points)
        real = rows.weight > 0
        kl = torch.zeros_like(rows.weight)
        if base is not None and beta:
            kl = (v - base).square().flatten(1).mean(1)
            loss = loss + beta * kl
        return (loss * rows.weight).sum(), {
            "kl": (kl.detach() * real).sum(),
            "deviation": ((ratio - 1).abs() * real).sum(),
            "clipped": (cut & real).sum(),
            "edges": real.sum(),
            "forwards": real.sum(),
        }

    def _score(self, batches: PointBatches, first: int, rows: PointBatch) -> None:
        needs = self.options.score_needs
        points = self._points(
            rows,
            self._plain(rows),
            base=self._base(rows) if "base" in needs else None,
            second=self._second(rows) if "second" in needs else None,
        )
        batches.keep(first, self.options.score(points))

    def _points(
        self, rows: PointBatch, v: Tensor, base: Tensor | None, second: Tensor | None
    ) -> Points:
        return Points(
            x0=rows.x0,
            x=rows.x,
            target=rows.target,
            t=rows.t,
            advantage=rows.advantage,
            v=v,
            base=base,
            second=second,
            score=rows.score,
            mean=rows.mean,
        )

    def _plain(self, rows: PointBatch) -> Tensor:
        """Velocity without a gradient."""
        with torch.no_grad(), self.model.without_gradient():
            return self.model.velocity(rows.x, rows.t, rows.cond).detach().float()

    def _second(self, rows: PointBatch) -> Tensor:
        assert self.second is not None
        with self.second.shown():
            return self._plain(rows)

    def _base(self, rows: PointBatch) -> Tensor:
        return self.model.base_velocity(rows.x, rows.t, rows.cond).float()
