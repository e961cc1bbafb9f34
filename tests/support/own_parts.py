"""A plug-in of each kind, in one file as a user writes it."""

from __future__ import annotations

from pathlib import Path

TEXT = '''"""Components of one's own."""
from __future__ import annotations
from typing import ClassVar
import numpy as np
from pydantic import Field
from branchgrpo.algo.advantage.base import AdvantageOptions
from branchgrpo.algo.advantage.group import GroupRelative
from branchgrpo.algo.loss.base import LossOptions
from branchgrpo.algo.methods.base import MethodOptions
from branchgrpo.algo.pruning.base import PruningOptions
from branchgrpo.models.flux import FluxModel
from branchgrpo.rewards.base import RewardOptions, Scorer
from branchgrpo.sinks.base import SinkOptions
from branchgrpo.types import BranchPlan

def brightness(images, samples):
    """Mean of the picture."""
    return [float(np.asarray(image).mean()) for image in images]

class Bright(RewardOptions):
    """Mean of the picture, times a factor."""
    factor: float = Field(1.0, gt=0, description="the factor")

    def build(self, resources):
        return Brightness(self)

class Brightness(Scorer):
    def __init__(self, options):
        self.options = options

    def score(self, pixels, samples):
        means = pixels.reshape(len(pixels), -1).mean(1)
        return {"score": (self.options.factor * means).astype(np.float32)}

class LateSplit(MethodOptions):
    """One split in the middle, random before and after it."""
    fanout: int = Field(4, ge=2, description="children of that split")

    def full_plan(self, iteration, schedule, seed):
        steps = schedule.steps
        return BranchPlan(
            sigmas=schedule.levels,
            fanout=tuple(self.fanout if step == (steps - 1) // 2 else 1 for step in range(steps)),
            kernel=(self.kernel,) * (steps - 1) + ("ode",),
            noise_scale=(self.eta,) * (steps - 1) + (0.0,),
        )

class Halved(GroupRelative):
    """GRPO's estimator with half the advantage; keeps the name of its parent's table entry."""

    def credit(self, plan, trees):
        from dataclasses import replace
        found = super().credit(plan, trees)
        return [replace(one, advantage=one.advantage / 2) for one in found]

class EveryOther(PruningOptions):
    """Leaves out every other edge."""
    prunes_combs: ClassVar[bool] = True
    offset: int = Field(0, ge=0, le=1, description="the first edge that is left out")

    def keep(self, plan, trees, iteration, seed=0):
        from branchgrpo.algo.tree import topology
        return [np.arange(topology(plan).nodes) % 2 != self.offset for _ in trees]

class Plain(LossOptions):
    """The ratio times the advantage, with no bound."""
    factor: float = Field(1.0, gt=0, description="factor of the loss")

    def __call__(self, edges):
        import torch
        ratio = torch.exp(edges.log_prob - edges.old_log_prob)
        cut = torch.zeros_like(ratio, dtype=torch.bool)
        return -self.factor * edges.advantage * ratio, ratio.detach(), cut

class Lines(SinkOptions):
    """A file with a line for each iteration."""
    file: str = Field("lines.txt", min_length=1, description="its name in the run folder")

    def open(self, key, folder, config):
        return LinesFile(folder / self.file)

class LinesFile:
    def __init__(self, path):
        self.path = path

    def write(self, iteration, values):
        with self.path.open("a") as file:
            print(iteration, *sorted(values), file=file)

    def close(self, failed):
        with self.path.open("a") as file:
            print("failed" if failed else "done", file=file)

class OwnFlux(FluxModel):
    """FLUX, with a key more."""
    speed: float = Field(1.0, gt=0, description="factor on every velocity")
'''

MEMBERS = {
    "rewards": ("Bright", "brightness"),
    "models": ("OwnFlux",),
    "methods": ("LateSplit",),
    "advantage": ("Halved",),
    "pruning": ("EveryOther",),
    "loss": ("Plain",),
    "sinks": ("Lines",),
}
"""Components of the file, by table."""


def own_parts(folder: Path) -> Path:
    """Write the file."""
    path = folder / "own_parts.py"
    path.write_text(TEXT, encoding="utf-8")
    return path
