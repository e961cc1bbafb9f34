"""A model of a few weights that the policy update can train, and trees grown with it one node at a
time."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from branchgrpo.algo.tree import topology
from branchgrpo.models.base import Adapter
from branchgrpo.types import U8, BranchPlan, Conditioning, Sample, TreeHeader, TreeKey

SIZE = 6
TEXT = 3


class SmallAdapter(Adapter):
    """Velocity = a two-layer network of (x, σ, text)."""

    def __init__(self, seed: int = 0):
        torch.manual_seed(seed)
        self.device, self.latent_shape = torch.device("cpu"), (SIZE,)
        self.denoiser = nn.Sequential(nn.Linear(SIZE + 1 + TEXT, 8), nn.Tanh(), nn.Linear(8, SIZE))
        self.rows: list[int] = []  # of every forward

    def double(self) -> SmallAdapter:
        """A float64 copy."""
        found = copy.copy(self)
        found.denoiser = copy.deepcopy(self.denoiser).double()
        return found

    def encode(self, samples: list[Sample]) -> Conditioning:
        draw = np.random.default_rng(len(samples))
        return Conditioning(
            {"text": draw.normal(size=(len(samples), TEXT)).astype(np.float32)}, len(samples)
        )

    def velocity(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        self.rows.append(len(x))
        kind = next(self.denoiser.parameters()).dtype
        out: Tensor = self.denoiser(torch.cat([x, sigma[:, None], cond["text"]], 1).to(kind))
        return out

    def truncated(self, samples: list[Sample]) -> int:
        return 0

    def decode(self, x0: Tensor) -> U8:
        raise NotImplementedError

    def fingerprint_conditioning(self, rows: int) -> dict[str, Tensor]:
        return {"text": torch.ones(rows, TEXT)}

    def save(self, folder: Path, source: Path, form: str, shift: float | None = None) -> None:
        raise NotImplementedError


def density(
    model: SmallAdapter, plan: BranchPlan, step: int, x: Tensor, y: Tensor, text: Tensor
) -> Tensor:
    """Mean log density of one child y [S] of x [S] under the `dance` kernel, written out, in the
    model's precision."""
    mean, std = moments(model, plan=plan, step=step, x=x, text=text)
    return torch.distributions.Normal(mean, std).log_prob(y.double()).mean()


def moments(
    model: SmallAdapter, plan: BranchPlan, step: int, x: Tensor, text: Tensor, random: bool = True
) -> tuple[Tensor, float]:
    """Mean and std of the children of x [S]: x + v·dt − ½η²·score·dt and η·√(−dt); without noise x
    + v·dt and 0."""
    sigma, after = float(plan.sigmas[step]), float(plan.sigmas[step + 1])
    eta, dt = plan.noise_scale[step] * random, after - sigma
    v = model.velocity(
        x.double()[None], torch.tensor([sigma], dtype=torch.float64), {"text": text.double()[None]}
    )[0]
    clean = x.double() - sigma * v
    score = -(x.double() - (1 - sigma) * clean) / sigma**2
    return x.double() + v * dt - 0.5 * eta**2 * score * dt, eta * math.sqrt(-dt)


def grow(
    model: SmallAdapter, plan: BranchPlan, trees: int, text: Tensor, off: float
) -> tuple[list[TreeHeader], dict[tuple[int, int], Tensor]]:
    """Trees of as many prompts, with behaviour log-probs that differ by ±off or ±off/5 from the
    model's, so that some are clipped."""
    topo, exact = topology(plan), model.double()
    draw = torch.Generator().manual_seed(4)
    shifts = np.random.default_rng(4)
    latents, headers = {}, []
    for tree in range(trees):
        latents[tree, 0] = torch.randn(SIZE, generator=draw)
        log_prob = np.zeros(topo.nodes, np.float32)
        for node in range(1, topo.nodes):
            step, parent = int(topo.step[node]), int(topo.parent[node])
            with torch.no_grad():
                mean, std = moments(
                    exact,
                    plan=plan,
                    step=step,
                    x=latents[tree, parent],
                    text=text[tree],
                    random=bool(topo.stochastic[node]),
                )
                if not std:
                    latents[tree, node] = mean.float()
                    continue
                latents[tree, node] = (
                    mean + std * torch.randn(SIZE, generator=draw, dtype=torch.float64)
                ).float()
                value = density(
                    exact,
                    plan=plan,
                    step=step,
                    x=latents[tree, parent],
                    y=latents[tree, node],
                    text=text[tree],
                )
            log_prob[node] = float(value) + off * float(shifts.choice([-1.0, -0.2, 0.2, 1.0]))
        rewards = shifts.normal(size=topo.leaves).astype(np.float32)
        headers.append(
            TreeHeader(
                key=TreeKey("test", 0, tree, 0),
                prompt_index=tree,
                policy_version=0,
                log_prob=log_prob,
                leaf_reward=rewards,
            )
        )
    return headers, latents
