"""A second set of the trained weights, which follows them: what rollouts sample with, or a mean
that the loss holds the policy to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class SecondWeights:
    """Float32, as masters are. Not for sharded weights, of which a forward leaves some gathered."""

    def __init__(self, masters: Mapping[str, Tensor], parameters: Mapping[str, Tensor]):
        """masters: what AdamW moves; parameters: what the model computes with, the same tensors
        unless they are 16 bits."""
        self.masters, self.parameters = masters, parameters
        self.tensors = {name: value.detach().clone() for name, value in masters.items()}

    @torch.no_grad()
    def move(self, decay: float) -> None:
        """second ← decay·second + (1 − decay)·trained."""
        for name, value in self.tensors.items():
            value.lerp_(self.masters[name].detach(), 1.0 - decay)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The model computes with them meanwhile. No graph whose backward is to come may hold its
        weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange(back=True)

    @torch.no_grad()
    def _exchange(self, back: bool = False) -> None:
        for name, value in self.parameters.items():
            master = self.masters[name]
            if master is value:  # they change places, without a copy
                value.data, self.tensors[name] = self.tensors[name], value.data
            else:
                value.copy_(master if back else self.tensors[name])
