"""Two denoisers as one module: each row goes through that of its noise level."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class TwoDenoisers(nn.Module):
    """Rows whose time step is at least `boundary` go through `transformer`, all others through
    `transformer_2`: the names of the pipeline's parts, and what parameters' names begin with."""

    def __init__(self, high: Any, low: Any, boundary: float, learning: tuple[str, ...]):
        """high, low: for much noise, and for little. learning: names of those that train, which
        alone may have adapters."""
        super().__init__()
        self.transformer: Any = high
        self.transformer_2: Any = low
        self.boundary, self.learning = boundary, learning
        self.in_step = False  # forwards are collectives, see Adapter.in_step

    @property
    def config(self) -> Any:
        """Of either: they differ in their weights alone."""
        return self.transformer.config

    def trained(self) -> dict[str, Any]:
        """Those that train, by name."""
        return {name: part for name, part in self.named_children() if name in self.learning}

    def forward(self, timestep: Tensor, **given: Any) -> tuple[Tensor]:
        """What the denoisers give, [B, …], in the rows' order. timestep [B]; tensors among what
        else is given have B rows."""
        given["timestep"] = timestep
        if timestep.is_meta:  # it has no values, and either costs the same
            return self._through(next(iter(self.trained().values())), given)
        high = timestep >= self.boundary
        own, wanted = self._used(high)
        parts = [self.transformer, self.transformer_2]
        if not all(wanted):
            return self._through(parts[wanted.index(True)], given)
        found, places, nothing = [], [], timestep.new_zeros(())
        for part, mask, mine in zip(parts, (high, ~high), own, strict=True):
            # for the other ranks' sake alone: one row, which counts for nothing
            rows = (
                mask.nonzero()[:, 0] if mine else torch.zeros_like(timestep[:1], dtype=torch.long)
            )
            (out,) = self._through(part, given, rows)
            if mine:
                found.append(out)
                places.append(rows)
            else:
                nothing = 0.0 * out.float().sum()
        out = torch.cat(found)[torch.cat(places).argsort()]
        return (out + nothing,)

    def _used(self, high: Tensor) -> tuple[list[bool], list[bool]]:
        """Whether there are rows for either denoiser: here, and on any rank whose forwards are in
        step."""
        here = torch.stack([high.any(), (~high).any()]).int()
        own = here.tolist()
        if self.in_step:
            dist.all_reduce(here, dist.ReduceOp.MAX)
        return [bool(one) for one in own], [bool(one) for one in here.tolist()]

    def _through(
        self, part: Any, given: dict[str, Any], rows: Tensor | None = None
    ) -> tuple[Tensor]:
        chosen = {
            name: value[rows] if rows is not None and isinstance(value, Tensor) else value
            for name, value in given.items()
        }
        found: tuple[Tensor] = part(**chosen)
        return found

    # what the methods of one denoiser of diffusers do

    def disable_adapters(self) -> None:
        """Of those that train."""
        for part in self.trained().values():
            part.disable_adapters()

    def enable_adapters(self) -> None:
        """Of those that train."""
        for part in self.trained().values():
            part.enable_adapters()

    def disable_gradient_checkpointing(self) -> None:
        """Of both."""
        for part in (self.transformer, self.transformer_2):
            part.disable_gradient_checkpointing()

    def enable_gradient_checkpointing(self) -> None:
        """Of both."""
        for part in (self.transformer, self.transformer_2):
            part.enable_gradient_checkpointing()
