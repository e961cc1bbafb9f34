"""Batched expansion of a segment of many trees: one forward for the whole frontier.

A segment runs from level `start` to level `stop`; the rows of every subtree, tree and prompt
advance together, `max_batch` rows a forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from branchgrpo.algo import kernels, noise
from branchgrpo.algo.tree import topology, viewed_nodes
from branchgrpo.errors import UserError
from branchgrpo.models.base import Adapter
from branchgrpo.rollout.segment import Record, Rows, Segment
from branchgrpo.types import F32, I32, BranchPlan, Conditioning, Subtree


class Sampler:
    """Grows segments with one model. Pure: the result depends on keys, weights and inputs alone."""

    def __init__(
        self,
        model: Adapter,
        seed: int,
        storage: torch.dtype,
        max_batch: int,
        keep_velocity: bool = False,
    ):
        self.model = model
        self.seed = seed
        self.storage = storage
        self.max_batch = max_batch
        self.keep_velocity = keep_velocity
        self.halved = 0  # how often max_batch was, for want of memory

    def roots(self, plan: BranchPlan, subtrees: tuple[Subtree, ...]) -> Tensor:
        """Pure noise at the root of each tree: [M, *S] storage dtype; chains that belong together
        share it."""
        drawn = []
        for subtree in subtrees:
            key = subtree.key
            if plan.shared_root:
                key = replace(key, tree=key.tree - key.tree % plan.chains)
            drawn.append(noise.draw(self.seed, key, 0, self.model.latent_shape))
        return torch.stack(drawn).to(self.storage)

    @torch.no_grad()
    def grow(
        self,
        plan: BranchPlan,
        subtrees: tuple[Subtree, ...],
        x: Tensor,
        start: int,
        stop: int,
        conditioning: Conditioning,
        clean: bool = False,
        viewed: bool = False,
    ) -> Segment:
        """Expand subtrees whose roots' latents are x [M, *S] from level `start` to level `stop`.
        clean: keep the leaves for training, not what random edges join. viewed: keep x̂0 of the
        nodes to be shown."""
        topo, device = topology(plan), self.model.device
        state = Rows(topo, subtrees, x.to(device), start)
        cond, prompt = self._conditioning(subtrees, conditioning)
        record = Record(self.keep_velocity, clean, viewed_nodes(plan) & viewed)
        denoised = None
        halved = self.halved
        for step in range(start, stop):
            rows = prompt[torch.from_numpy(state.owner).to(device)]
            v = self._velocity(
                state.x,
                float(plan.sigmas[step]),
                {name: array[rows] for name, array in cond.items()},
            )
            record.forwards += len(state.x)
            children, counts = topo.children(state.node)
            above, random = np.repeat(np.arange(len(counts)), counts), topo.stochastic[children]
            going, denoised = kernels.deterministic(
                plan, step=step, x=state.x, v=v, previous=denoised
            )
            record.view(state, denoised)
            parents = torch.from_numpy(above).to(device)
            below = going.to(self.storage)[parents]
            denoised = denoised[parents] if "dpm" in plan.kernel else None
            if random.any():
                drawn, log_prob = self._random_children(
                    plan,
                    step=step,
                    subtrees=subtrees,
                    state=state,
                    v=v,
                    above=above[random],
                    children=children[random],
                )
                below[torch.from_numpy(np.flatnonzero(random)).to(device)] = drawn
                record.log_probs.append(log_prob)
                if plan.trainable[step]:
                    record.add_parents(state, v, np.unique(above[random]))
            state.advance(below, above, children)
            if random.any() and plan.trainable[step]:
                record.add_children(state, np.flatnonzero(random))
        # noise on the last edge is trained on, but not shown
        if stop == plan.steps and plan.stochastic[-1]:
            state.x = going.to(self.storage)[parents]
        if clean and stop == plan.steps:
            record.kept.add(state.x, state.owner, state.node, np.arange(len(state.x)))
        return record.segment(len(subtrees), x, state.x, self.halved - halved)

    def _conditioning(
        self, subtrees: tuple[Subtree, ...], conditioning: Conditioning
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Encodings of the subtrees' prompts, and each subtree's row among them [M], on the device.
        Encodings are large: only those of this task go there."""
        used = sorted({subtree.prompt_index for subtree in subtrees})
        cond = self.model.conditioning(conditioning.take(used))
        rows = [used.index(subtree.prompt_index) for subtree in subtrees]
        return cond, torch.tensor(rows, device=self.model.device)

    def _velocity(self, x: Tensor, sigma: float, cond: dict[str, Tensor]) -> Tensor:
        out: list[Tensor] = []
        first = 0
        while first < len(x):
            rows = slice(first, first + self.max_batch)
            levels = torch.full((len(x[rows]),), sigma, device=x.device)
            try:
                with self.model.without_gradient():
                    v = self.model.velocity(
                        x[rows], levels, {name: array[rows] for name, array in cond.items()}
                    )
                out.append(v.detach())
                first += len(levels)
            except torch.OutOfMemoryError as error:
                self._halve(x[rows], error)
        return torch.cat(out)

    def _halve(self, x: Tensor, error: torch.OutOfMemoryError) -> None:
        """From now on, forwards of half as many latents as this one [b, *S], which did not fit.
        Raises UserError for a single one."""
        if len(x) == 1:
            line = str(error).splitlines()[0]
            raise UserError(
                f"rollout.max_batch: out of memory even with 1 latent {list(x.shape[1:])} a "
                f"forward on {x.device}: {line}"
            ) from error
        self.max_batch, self.halved = len(x) // 2, self.halved + 1

    def _random_children(
        self,
        plan: BranchPlan,
        *,
        step: int,
        subtrees: tuple[Subtree, ...],
        state: Rows,
        v: Tensor,
        above: np.ndarray,
        children: I32,
    ) -> tuple[Tensor, F32]:
        """Random children [c, *S] in the storage dtype, and the log-probs [M, c / M] of what is
        stored; `above` [c] are rows of their parents, rising."""
        steps = torch.full((len(v),), step, device=v.device)
        mean, std = kernels.transition(plan, steps, state.x, v)
        parents = torch.from_numpy(above).to(v.device)
        mean, std = mean[parents], std[parents]
        xi = self._noise(plan, subtrees=subtrees, state=state, above=above, children=children)
        drawn = (mean + std * xi).to(self.storage)
        log_prob = kernels.log_prob(drawn, mean, std).cpu().numpy()
        return drawn, log_prob.reshape(len(subtrees), -1)

    def _noise(
        self,
        plan: BranchPlan,
        subtrees: tuple[Subtree, ...],
        state: Rows,
        above: np.ndarray,
        children: I32,
    ) -> Tensor:
        """[c, *S] standard normal noise of c random children, keyed by node; `above` [c] are rows
        of their parents, rising."""
        shape, drawn = tuple(state.x.shape[1:]), []
        for row, siblings in _runs(above, children):
            key, parent = subtrees[state.owner[row]].key, int(state.node[row])
            drawn.append(
                noise.branch(
                    plan.branch_noise,
                    scale=plan.branch_scale,
                    seed=self.seed,
                    key=key,
                    parent=parent,
                    children=siblings,
                    shape=shape,
                )
            )
        return torch.cat(drawn).to(state.x.device)


def _runs(above: np.ndarray, children: I32) -> Iterator[tuple[int, list[int]]]:
    """(row, its children) for every row in `above`."""
    starts = np.flatnonzero(np.diff(above, prepend=-1))
    for row, siblings in zip(above[starts].tolist(), np.split(children, starts[1:]), strict=True):
        yield row, siblings.tolist()
