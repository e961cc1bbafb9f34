"""BranchGRPO (arXiv 2509.06040) in one file, without Ray: trees, credit, update, top to bottom.

    python examples/branchgrpo_in_200_lines.py --iterations 2

Only the network and the judge are imported. A test holds trees, advantages, gradient and weights
against the engine's. P prompts with one tree each, T steps, L leaves; S is the shape of a latent.
Level l of the trees is their latents after l steps, [P, n_l, *S]. The k children of a node are
neighbours; nodes are numbered level by level, from the root, 0. σ is the noise level, 1 … 0.
"""

import argparse
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor

from branchgrpo.models.flux import Flux, FluxModel
from branchgrpo.rewards.base import Resources
from branchgrpo.rewards.ocr import OcrReward
from branchgrpo.types import Sample

PROMPTS = files("branchgrpo") / "assets" / "prompts" / "train.txt"
Draw = Callable[[int, bool], Tensor]  # (node, is it the noise its children share?) → [P, *S]


@dataclass
class Settings:
    """The method: the preset `branchgrpo`, and a learning rate that suits the small model."""

    steps: int = 20  # T
    splits: tuple[int, ...] = (0, 3, 6, 9)  # steps at which every node gets `fanout` children
    fanout: int = 2
    only_splits: bool = False  # which steps are random: the splits, or all but the last
    shift: float = 3.0  # of the noise levels, as the model's own pipeline has it
    eta: float = 0.3  # η, the size of the noise
    branch_scale: float = 4.0  # s: how far apart the noises of siblings are
    path_beta: float = 0.0  # β: how much more likely paths weigh in a node's reward
    width_pruning: bool = False  # after the last split, train the better child's chain only
    clip_range: float = 1e-3
    clamp: float = 5.0  # of advantages
    optimiser_steps: int = 3  # per iteration
    learning_rate: float = 7e-5
    max_grad_norm: float = 1.0
    prompts: int = 4  # P, per iteration
    seed: int = 0

    @property
    def sigmas(self) -> Tensor:  # [T+1]
        even = torch.linspace(1, 0, self.steps + 1, dtype=torch.float64)
        return (self.shift * even / (1 + (self.shift - 1) * even)).float()

    def children(self, step: int) -> int:
        return self.fanout if step in self.splits else 1

    def random(self, step: int) -> bool:  # never the last: its noise would not reach the picture
        return step in self.splits if self.only_splits else step < self.steps - 1


@dataclass
class Trees:
    """P trees, level by level. `credit` adds the last three."""

    text: dict[str, Tensor]  # encoded prompts, P rows each
    x: list[Tensor]  # [P, n_l, *S]
    log_prob: list[Tensor]  # [P, n_l] of the edge into a node; 0 where the step is not random
    reward: list[Tensor] = field(default_factory=list)  # [P, n_l]
    advantage: list[Tensor] = field(default_factory=list)  # [P, n_l]
    keep: list[Tensor] = field(default_factory=list)  # [P, n_l] bool: the edge is trained


# 1. Trees: where a step leads, how likely that was, and how siblings come to differ


def transition(s: Settings, t: int, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, std) of random step t from x with velocity v: an SDE with the ODE's marginals."""
    sigma, dt = s.sigmas[t], s.sigmas[t + 1] - s.sigmas[t]  # dt < 0
    score = -(x - (1 - sigma) * (x - sigma * v)) / sigma**2
    return x + v * dt - 0.5 * s.eta**2 * score * dt, s.eta * torch.sqrt(-dt)


def log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log N(x; mean, std²), averaged over the dimensions of each latent: [..., *S] → [...]."""
    z = (x - mean) / std
    return (-0.5 * z**2 - torch.log(std) - 0.5 * math.log(2 * math.pi)).mean((-2, -1))


def branch_noise(s: Settings, draw: Draw, parents: range, k: int) -> Tensor:
    """[P, n·k, *S] for the children of n nodes: (ξ_shared + s·ξ_own) / √(1 + s²), each N(0, I)."""
    own = torch.stack([draw(parents.stop + i, False) for i in range(len(parents) * k)], 1)
    if k == 1:  # no sibling to agree with
        return own
    shared = torch.stack([draw(parent, True) for parent in parents], 1).repeat_interleave(k, 1)
    return (shared + s.branch_scale * own) / math.sqrt(1 + s.branch_scale**2)


@torch.no_grad()
def grow(model: Flux, s: Settings, text: dict[str, Tensor], draw: Draw) -> Trees:
    """P trees, all nodes of a level in one forward."""
    x, first = draw(0, False)[:, None], 0  # the root: pure noise
    trees = Trees(text, [x], [torch.zeros(x.shape[:2])])
    for t in range(s.steps):
        n, k = x.shape[1], s.children(t)
        rows = {name: value.repeat_interleave(n, 0) for name, value in text.items()}
        v = model.velocity(x.flatten(0, 1), s.sigmas[t].expand(len(x) * n), rows).view(x.shape)
        if s.random(t):
            mean, std = transition(s, t, x, v)
            mean = mean.repeat_interleave(k, 1)  # siblings share the forward of their parent
            x = mean + std * branch_noise(s, draw, range(first, first + n), k)
            old = log_prob(x, mean, std)
        else:
            x, old = x + v * (s.sigmas[t + 1] - s.sigmas[t]), torch.zeros(x.shape[:2])
        trees.x.append(x)
        trees.log_prob.append(old)
        first += n
    return trees


# 2. Credit: leaf rewards go up to every node, and nodes of one depth are compared


def credit(s: Settings, trees: Trees, rewards: Tensor) -> None:
    """rewards: [P, L] of the leaves."""
    path = trees.log_prob[0]  # [P, L] at the end: log-prob of the whole path to a leaf
    for t in range(s.steps):
        path = path.repeat_interleave(s.children(t), 1) + trees.log_prob[t + 1]
    split = rewards.unflatten(1, (-1, s.fanout))  # the leaves of each last split
    best = torch.zeros_like(split).scatter(2, split.argmax(2, keepdim=True), 1.0).flatten(1)
    for level, edges in enumerate(trees.log_prob):
        below = (edges.shape[1], -1)  # the leaves below a node are neighbours
        weight = torch.softmax(s.path_beta * path.unflatten(1, below), -1)
        r = (weight * rewards.unflatten(1, below)).sum(-1)
        equal = r.amax(1, keepdim=True) - r.amin(1, keepdim=True) < 1e-6  # nothing to learn from
        spread = r.std(1, keepdim=True) + 1e-8 if r.shape[1] > 1 else torch.ones(1)
        a = ((r - r.mean(1, keepdim=True)) / spread).clamp(-s.clamp, s.clamp)
        trees.reward.append(r)
        trees.advantage.append(a.masked_fill(equal, 0.0))
        mask = best if s.width_pruning and level - 1 > max(s.splits) else torch.ones_like(r)
        trees.keep.append(mask.bool() & (level > 0 and s.random(level - 1)))


# 3. Update: the clipped loss over the kept edges, one forward for all children of a parent


def update(model: Flux, adam: torch.optim.AdamW, s: Settings, trees: Trees, seed: int) -> None:
    """Optimiser steps over all parents, dealt out at random where there are several steps."""

    def of(t: int, levels: list[Tensor]) -> Tensor:  # [P, n_t, k, …] of the parents' children
        return levels[t + 1].unflatten(1, (-1, s.children(t)))

    trained = [of(t, trees.keep).any(2).nonzero().tolist() for t in range(s.steps)]
    parents = np.array(sorted((p, t, i) for t, rows in enumerate(trained) for p, i in rows))
    if s.optimiser_steps > 1:
        parents = np.random.default_rng(seed).permutation(parents)
    for part in np.array_split(parents, s.optimiser_steps):
        edges = sum(int(of(t, trees.keep)[p, i].sum()) for p, t, i in part)
        adam.zero_grad()
        for t in np.unique(part[:, 1]):
            p, i = part[part[:, 1] == t][:, [0, 2]].T
            x, y = trees.x[t][p, i], of(t, trees.x)[p, i]
            keep, old = of(t, trees.keep)[p, i], of(t, trees.log_prob)[p, i]
            a, rows = of(t, trees.advantage)[p, i], {name: v[p] for name, v in trees.text.items()}
            mean, std = transition(s, t, x, model.velocity(x, s.sigmas[t].expand(len(x)), rows))
            ratio = torch.exp(log_prob(y, mean[:, None], std) - old)
            bounded = ratio.clamp(1 - s.clip_range, 1 + s.clip_range)
            loss = torch.maximum(-a * ratio, -a * bounded) * keep
            (loss.sum() / edges).backward()  # over all t: the mean over the step's edges
        torch.nn.utils.clip_grad_norm_(model.trainable().values(), s.max_grad_norm)
        adam.step()


def main() -> None:
    parser = argparse.ArgumentParser(description="BranchGRPO on the embedded model.")
    parser.add_argument("--iterations", type=int, default=100)
    options, s = parser.parse_args(), Settings()
    call = {"height": 32, "width": 32, "guidance": 1.0, "max_sequence_length": 16}
    model = FluxModel(path="embedded:tiny-flux", **call).build("cpu")
    judge = OcrReward(target=r"number (\d+)").build(Resources(threads=2))  # how surely it is read
    adam = torch.optim.AdamW(model.trainable().values(), s.learning_rate, weight_decay=1e-4)
    noise, dice = torch.Generator().manual_seed(s.seed), random.Random(s.seed)
    texts, shape = PROMPTS.read_text().splitlines(), (s.prompts, *model.latent_shape)
    for iteration in range(options.iterations):
        chosen = [Sample(prompt=text) for text in dice.sample(texts, s.prompts)]
        text = model.conditioning(model.encode(chosen))
        trees = grow(model, s, text, lambda *_: torch.randn(shape, generator=noise))
        leaves = trees.x[-1]  # [P, L, *S]
        asked = [sample for sample in chosen for _ in range(leaves.shape[1])]
        scores = judge.score(model.decode(leaves.flatten(0, 1)), asked)
        credit(s, trees, torch.from_numpy(scores["likelihood"]).view(leaves.shape[:2]))
        update(model, adam, s, trees, s.seed + iteration)
        reward, right = scores["likelihood"].mean(), scores["exact"].mean()
        print(f"{iteration + 1}: reward {reward:.3f}, read right {right:.0%}", flush=True)


if __name__ == "__main__":
    main()
