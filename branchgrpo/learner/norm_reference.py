"""‖v‖ beside what it was when the run began: on the same few latents, all the run long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from branchgrpo.learner.portions import Portions
from branchgrpo.models.base import Adapter
from branchgrpo.types import BranchPlan, Conditioning

PROMPTS, LEVELS = 2, 4
"""Of the first iteration's, and of its plan's: so many latents together."""

EVERY = 10
"""Updates between measurements: their forwards are next to nothing beside the updates' own."""

_TEXT = "text."
_MOST = 1 << 10


@dataclass
class FixedLatents:
    """n latents and the encodings of P prompts, in main memory; latent i is of prompt i mod P."""

    x: Tensor  # [n, *S] float32
    sigma: Tensor  # [n] float32
    texts: Mapping[str, Tensor]  # [P, …]
    device: torch.device
    size: int = 1  # rows of a forward at most

    def __len__(self) -> int:
        return len(self.x)

    def take(self, first: int, count: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(x, sigma, texts) of these, on the device."""
        rows = torch.arange(first, first + count)
        texts = {name: one[rows % len(one)].to(self.device) for name, one in self.texts.items()}
        return self.x[rows].to(self.device), self.sigma[rows].to(self.device), texts

    def velocities(self, model: Adapter, portions: Portions) -> Tensor:
        """[n, *S] float32 of the model as it is, in main memory."""
        found: list[Tensor] = []

        def work(first: int, rows: tuple[Tensor, Tensor, dict[str, Tensor]]) -> None:
            with torch.no_grad(), model.without_gradient():
                found.append(model.velocity(*rows).detach().float().cpu())

        portions.run(self, work)
        return torch.cat(found)


class NormReference:
    """Latents on the way from noise to pictures, and how large the velocity was there when the run
    began."""

    def __init__(self, latents: FixedLatents, base: float):
        """base: root mean square of the velocity, over latents and dimensions."""
        self.latents, self.base = latents, base

    @classmethod
    def drawn(
        cls,
        model: Adapter,
        plan: BranchPlan,
        prompts: Sequence[Conditioning],
        *,
        portions: Portions,
        size: int,
        seed: int,
    ) -> Self:
        """By the model as it is, from a noise for each of these prompts, in a few large steps
        through the plan's noise levels. Those at which frozen weights compute are left out: the
        first or the last are not, whichever weights train."""
        encoded = model.conditioning(Conditioning.joined(prompts))
        texts = {name: array.cpu() for name, array in encoded.items()}
        draw = torch.Generator().manual_seed(seed)
        x = torch.randn(len(prompts), *model.latent_shape, generator=draw)
        steps = np.unique(np.linspace(0, plan.steps - 1, LEVELS).round().astype(int)).tolist()
        kept: list[FixedLatents] = []
        squares: list[Tensor] = []
        for step, after in zip(steps, [*steps[1:], plan.steps], strict=True):
            sigma = torch.full((len(x),), float(plan.sigmas[step]))
            latents = FixedLatents(x, sigma, texts, model.device, size)
            v = latents.velocities(model, portions)
            if not (plan.frozen and plan.frozen[step]):
                kept.append(latents)
                squares.append(v.double().square())
            x = x + v * float(plan.sigmas[after] - plan.sigmas[step])
        base = torch.cat(squares).mean().sqrt()
        whole = FixedLatents(
            torch.cat([one.x for one in kept]),
            torch.cat([one.sigma for one in kept]),
            texts,
            model.device,
        )
        return cls(whole, float(base))

    def ratio(self, model: Adapter, portions: Portions, size: int) -> float:
        """‖v‖ of the model as it is, root mean square over latents, ÷ what it was."""
        self.latents.size = size
        v = self.latents.velocities(model, portions)
        return float(v.double().square().mean().sqrt()) / self.base

    def tensors(self) -> dict[str, Tensor]:
        """What `read` takes."""
        texts = {f"{_TEXT}{name}": array for name, array in self.latents.texts.items()}
        base = torch.tensor([self.base], dtype=torch.float64)
        return {"x": self.latents.x, "sigma": self.latents.sigma, "base": base} | texts

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], model: Adapter) -> Self:
        """Raises ValueError for what is none of this model's, saying what was expected."""
        x, sigma, base = (tensors.get(name, torch.zeros(0)) for name in ("x", "sigma", "base"))
        if not (0 < len(x) <= _MOST and x.shape[1:] == torch.Size(model.latent_shape)):
            raise ValueError(
                f"x: expected latents of shape {tuple(model.latent_shape)}, got {tuple(x.shape)}"
            )
        if sigma.shape != x.shape[:1] or x.dtype != torch.float32 or sigma.dtype != torch.float32:
            raise ValueError(
                f"x, sigma: expected float32 and as many, got {x.dtype}, {sigma.dtype} and "
                f"{tuple(sigma.shape)}"
            )
        if base.shape != (1,) or not (torch.isfinite(base).all() and base.item() > 0):
            raise ValueError("base: expected a number above 0")
        texts = {name[len(_TEXT) :]: one for name, one in tensors.items() if name.startswith(_TEXT)}
        wanted = model.fingerprint_conditioning(1)
        shared = wanted.keys() & texts.keys()
        if not shared or any(texts[name].ndim != wanted[name].ndim for name in shared):
            raise ValueError(f"expected encodings {sorted(wanted)} as of this model")
        rows = {len(one) if one.ndim else 0 for one in texts.values()}
        if len(rows) != 1 or not 0 < max(rows) <= len(x):
            raise ValueError(f"expected encodings of as many prompts, got {sorted(rows)}")
        return cls(FixedLatents(x, sigma, texts, model.device), float(base.item()))
