"""Which weights a model computes with, between updates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from branchgrpo.learner.policy import PolicyUpdate


class Shown:
    """Sets a policy's model to its weights (`policy`), to their exponential mean (`ema`), or to the
    second set of its loss (`second`)."""

    def __init__(self, policy: PolicyUpdate):
        self.policy = policy
        self.weights = "policy"
        # of those that train without a master apart: nothing else holds them meanwhile
        self._kept: list[Tensor] = []

    @contextmanager
    def own(self) -> Iterator[None]:
        """The policy's own weights meanwhile."""
        before = self.weights
        self.show("policy")
        try:
            yield
        finally:
            self.show(before)

    @torch.no_grad()
    def show(self, weights: str) -> None:
        """These from now on. The policy must not be trained while its model has others."""
        if weights == self.weights:
            return
        policy = self.policy
        own = [
            value
            for master, value in zip(policy.masters, policy.parameters, strict=True)
            if master is value
        ]
        if self.weights != "policy":
            for value, kept in zip(own, self._kept, strict=True):
                value.copy_(kept)
            self._kept = []
            policy.follow()
        if weights != "policy":
            self._kept = [value.detach().clone() for value in own]
            shown = policy.named(weights)
            for name, value in zip(policy.names, policy.parameters, strict=True):
                value.copy_(shown[name])
        self.weights = weights
