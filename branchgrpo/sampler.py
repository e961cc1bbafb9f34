"""Batched expansion of a segment of many trees: one forward for the whole frontier.

A segment runs from level `start` to level `stop`; the rows of every subtree, tree and prompt advance
together, `max_batch` rows a forward.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from branchgrpo import kernels, noise
from branchgrpo.models.base import Adapter
from branchgrpo.tree import Topology, topology
from branchgrpo.types import F32, I32, BranchPlan, Conditioning, Subtree


@dataclass
class Segment:
    """M grown subtrees. Rows of `frontier` are ordered by subtree, then by node number."""

    log_prob: F32  # [M, E] of stochastic edges, by rising child number
    kept_subtree: I32  # [m] rows of `kept`
    kept_node: I32  # [m]
    kept: Tensor  # [m, *S] storage dtype: parents and children of stochastic edges
    frontier: Tensor  # [M*f, *S] storage dtype, nodes of level `stop`
    frontier_rows: int  # f, nodes of level `stop` below each subtree's root
    forwards: int  # rows sent through the model


class Sampler:
    """Grows segments with one model. Pure: the result depends on keys, weights and inputs alone."""

    def __init__(self, model: Adapter, seed: int, storage: torch.dtype, max_batch: int):
        self.model, self.seed, self.storage, self.max_batch = model, seed, storage, max_batch

    def roots(self, subtrees: tuple[Subtree, ...]) -> Tensor:
        """Pure noise at the root of each tree: [M, *S] storage dtype."""
        shape = self.model.latent_shape
        drawn = [noise.draw(self.seed, subtree.key, 0, shape) for subtree in subtrees]
        return torch.stack(drawn).to(self.storage)

    @torch.no_grad()
    def grow(self, plan: BranchPlan, subtrees: tuple[Subtree, ...], x: Tensor, start: int, stop: int, conditioning: Conditioning) -> Segment:
        """Expand subtrees whose roots' latents are x [M, *S] from level `start` to level `stop`."""
        topo = topology(plan)
        state = _State(topo, subtrees, x.to(self.model.device), start)
        cond = self.model.conditioning(conditioning)
        prompt = torch.tensor([subtree.prompt for subtree in subtrees], device=self.model.device)
        log_probs: list[np.ndarray] = []
        kept = _Kept()
        forwards = 0
        for step in range(start, stop):
            rows = prompt[torch.from_numpy(state.owner).to(prompt.device)]
            v = self._velocity(state.x, float(plan.sigmas[step]), {name: array[rows] for name, array in cond.items()})
            forwards += len(state.x)
            mean, std = kernels.transition(plan, torch.full((len(state.x),), step, device=state.x.device), state.x, v)
            if plan.stochastic[step]:
                fanout = plan.fanout[step]
                mean, std = mean.repeat_interleave(fanout, 0), std.repeat_interleave(fanout, 0)
                xi = self._noise(plan, step, subtrees, state, topo)
                sample = (mean + std * xi).to(self.storage)
                log_probs.append(kernels.log_prob(sample, mean, std).cpu().numpy().reshape(len(subtrees), -1))
                kept.add(state.x, state.owner, state.node)
                state.advance(sample, topo)
                kept.add(state.x, state.owner, state.node)
            else:  # one child: BranchPlan admits no deterministic split
                state.advance(mean.to(self.storage), topo)
        edges = np.concatenate(log_probs, 1) if log_probs else np.zeros((len(subtrees), 0), np.float32)
        return Segment(edges, *kept.arrays(state.x), state.x, len(state.x) // len(subtrees), forwards)

    def _velocity(self, x: Tensor, sigma: float, cond: dict[str, Tensor]) -> Tensor:
        out = []
        for first in range(0, len(x), self.max_batch):
            rows = slice(first, first + self.max_batch)
            levels = torch.full((len(x[rows]),), sigma, device=x.device)
            out.append(self.model.velocity(x[rows], levels, {name: array[rows] for name, array in cond.items()}))
        return torch.cat(out)

    def _noise(self, plan: BranchPlan, step: int, subtrees: tuple[Subtree, ...], state: _State, topo: Topology) -> Tensor:
        """[rows · fanout, *S] standard normal noise of all children of this step, keyed by node."""
        shape = tuple(state.x.shape[1:])
        drawn = []
        for owner, node, children in zip(state.owner, state.node, topo.children(state.node, step).tolist(), strict=True):
            drawn.append(noise.branch(plan.branch_noise, plan.branch_scale, self.seed, subtrees[owner].key, int(node), children, shape))
        return torch.cat(drawn).to(state.x.device)


class _State:
    """The rows in flight: latents, which subtree each belongs to, and its node number."""

    def __init__(self, topo: Topology, subtrees: tuple[Subtree, ...], x: Tensor, start: int):
        self.x, self.level = x, start
        self.owner = np.arange(len(subtrees))
        self.node = np.array([subtree.node for subtree in subtrees], np.int32)
        if not np.isin(self.node, topo.level(start)).all():
            raise ValueError(f"subtrees must start at level {start}, got nodes {self.node.tolist()}")

    def advance(self, x: Tensor, topo: Topology) -> None:
        """Go one level down; x holds a row for each child, in order."""
        children = topo.children(self.node, self.level)
        self.owner = np.repeat(self.owner, children.shape[1])
        self.node = children.reshape(-1)
        self.x, self.level = x, self.level + 1


class _Kept:
    """Latents that training needs, each node once (a child is often the next step's parent)."""

    def __init__(self) -> None:
        self.latents: list[Tensor] = []
        self.names: list[tuple[int, int]] = []
        self.seen: set[tuple[int, int]] = set()

    def add(self, x: Tensor, owner: np.ndarray, node: np.ndarray) -> None:
        names = list(zip(owner.tolist(), node.tolist(), strict=True))
        new = [row for row, name in enumerate(names) if name not in self.seen]
        if new:
            self.latents.append(x[new])
            self.names += [names[row] for row in new]
            self.seen.update(names)

    def arrays(self, like: Tensor) -> tuple[I32, I32, Tensor]:
        names = np.array(self.names, np.int32).reshape(-1, 2)
        latents = torch.cat(self.latents) if self.latents else like[:0]
        return names[:, 0], names[:, 1], latents
