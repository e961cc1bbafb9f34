"""Which weights a model computes with, between updates."""

from __future__ import annotations

import torch
from torch import Tensor

from branchgrpo.learner.policy import PolicyUpdate


class Shown:
    """Sets a policy's model to its weights (`policy`), or to their exponential mean (`ema`)."""

    def __init__(self, policy: PolicyUpdate):
        self.policy = policy
        self.weights = "policy"
        # of those that train without a master apart: nothing else holds them meanwhile
        self._kept: list[Tensor] = []

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
        if weights == "ema":
            self._kept = [value.detach().clone() for value in own]
            for name, value in zip(policy.names, policy.parameters, strict=True):
                value.copy_(policy.ema[name])
        else:
            for value, kept in zip(own, self._kept, strict=True):
                value.copy_(kept)
            self._kept = []
            policy.follow()
        self.weights = weights
