"""Videos of a first frame, drawn with small models, by us and by diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from branchgrpo.models.wan_i2v import WanI2V, WanI2VModel
from branchgrpo.rollout.sampler import Sampler
from branchgrpo.types import BranchPlan, Sample, Subtree, TreeKey
from support.small_wan import TOKENS, first_order

TREES = tuple(Subtree(TreeKey("run", 0, row, 0), row, 0) for row in range(2))
SIZES = {"2.1": (32, 48), "2.2": (32, 64)}
"""Height and width by version, after which a folder is called."""


def options(folder: Path, **keys: Any) -> WanI2VModel:
    height, width = SIZES[folder.name] if folder.name in SIZES else (32, 64)
    own = {"path": str(folder), "height": height, "width": width, "frames": 5}
    return WanI2VModel(**own | {"max_sequence_length": TOKENS, "true_cfg": 1.0} | keys)


def build(folder: Path, **keys: Any) -> WanI2V:
    torch.manual_seed(0)
    return options(folder, **keys).build("cpu")


def grown(
    model: WanI2V, samples: list[Sample], plan: BranchPlan, trees: tuple[Subtree, ...] = TREES
) -> tuple[Tensor, Tensor]:
    """Noise of the trees' roots and their leaves."""
    sampler = Sampler(model, 5, torch.float32, 2)
    roots = sampler.roots(plan, trees)
    return roots, sampler.grow(
        plan,
        subtrees=trees,
        x=roots,
        start=0,
        stop=plan.steps,
        conditioning=model.encode(samples),
    ).frontier


def stock(folder: Path) -> Any:
    from diffusers import WanImageToVideoPipeline

    return first_order(WanImageToVideoPipeline.from_pretrained(folder))


def drawn(
    pipe: Any, model: WanI2V, sample: Sample, roots: Tensor, steps: int
) -> tuple[Tensor, np.ndarray]:
    """The stock pipeline's latents [1, *S] and frames [1, F, H, W, 3] from the picture, resized."""
    size = model.options.picture_size[::-1]
    call = {
        "image": sample.images[0].open().resize(size, Image.Resampling.LANCZOS),
        "prompt": sample.prompt,
        "num_inference_steps": steps,
        **model.options.stock_call(),
    }
    latents = pipe(latents=roots.clone(), output_type="latent", **call).frames
    return latents, np.asarray(pipe(latents=roots.clone(), output_type="np", **call).frames)
