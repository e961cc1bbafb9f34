"""Videos drawn with a small Wan2.1, by us and by diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from branchgrpo.algo import plan as plans
from branchgrpo.models.small.wan import TOKENS
from branchgrpo.models.wan import Wan, WanModel
from branchgrpo.rollout.sampler import Sampler
from branchgrpo.types import Subtree, TreeKey
from support.records import records

PROMPTS = [
    "a red circle on white",
    "the number 38 in black on yellow above a blue star left of a green square",
]
NEGATIVE = "the number 12 in red on white"
STEPS = 4
TREES = tuple(
    Subtree(TreeKey("run", 0, prompt, tree), prompt, 0) for prompt, tree in ((0, 0), (1, 0), (1, 1))
)


def options(folder: Path, **keys: Any) -> WanModel:
    return WanModel(
        **{
            "path": str(folder),
            "height": 32,
            "width": 48,
            "frames": 5,
            "max_sequence_length": TOKENS,
        }
        | keys
    )


def build(folder: Path, **keys: Any) -> Wan:
    torch.manual_seed(0)
    return options(folder, **keys).build("cpu")


def inputs(model: Wan, rows: int = 3) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(x, σ, conditioning) that one forward takes."""
    draw = torch.Generator().manual_seed(3)
    return (
        torch.randn(rows, *model.latent_shape, generator=draw),
        torch.linspace(1.0, 0.1, rows),
        model.fingerprint_conditioning(rows),
    )


def move(model: Wan, size: float = 0.1) -> None:
    """Change every trainable parameter."""
    draw = torch.Generator().manual_seed(5)
    model.load(
        {
            name: value.detach() + size * torch.randn(value.shape, generator=draw)
            for name, value in model.trainable().items()
        }
    )


def sampled(model: Wan, steps: int = STEPS, shift: float | None = None) -> tuple[Tensor, Tensor]:
    """Noise and clean latents of TREES by our sampler, three rows in two forwards, as evaluation
    grows them."""
    sampler = Sampler(model, 5, torch.float32, 2)
    plan = plans.ode_plan(model.options.schedule(steps, shift))
    roots = sampler.roots(plan, TREES)
    return roots, sampler.grow(
        plan,
        subtrees=TREES,
        x=roots,
        start=0,
        stop=steps,
        conditioning=model.encode(records(PROMPTS)),
    ).frontier


def stock(folder: Path) -> Any:
    """diffusers' pipeline; its scheduler makes its own noise levels, and takes steps of first
    order, which are Euler's."""
    from diffusers import WanPipeline

    return first_order(WanPipeline.from_pretrained(folder))


def first_order(pipe: Any) -> Any:
    """The pipeline, silent, with such a scheduler."""
    from diffusers import UniPCMultistepScheduler

    if isinstance(pipe.scheduler, UniPCMultistepScheduler):
        pipe.scheduler = UniPCMultistepScheduler.from_config(
            pipe.scheduler.config, solver_order=1, disable_corrector=list(range(1000))
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe: Any, model: Wan, roots: Tensor, steps: int = STEPS) -> tuple[Tensor, np.ndarray]:
    """The stock pipeline's latents [B, *S] and frames [B, F, H, W, 3], 0 … 1, from the same
    noise."""
    kept: dict[str, Tensor] = {}

    def keep(pipe: Any, step: int, t: Tensor, found: dict[str, Tensor]) -> dict[str, Tensor]:
        kept.update(found)
        return {}

    frames = (roots.shape[2] - 1) * 4 + 1
    made = pipe(
        prompt=[PROMPTS[tree.prompt_index] for tree in TREES],
        negative_prompt=model.options.negative_prompt,
        height=model.options.height,
        width=model.options.width,
        num_frames=frames,
        num_inference_steps=steps,
        **model.options.stock_guidance(),
        latents=roots.clone(),
        max_sequence_length=TOKENS,
        callback_on_step_end=keep,
        output_type="np",
    ).frames
    return kept["latents"], np.asarray(made)
