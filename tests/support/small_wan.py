"""A Wan2.1 folder of the real classes, narrow, shallow and with random weights; and videos drawn
with it, by us and by diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from branchgrpo.algo import plan as plans
from branchgrpo.models.wan import Wan, WanModel
from branchgrpo.rollout.sampler import Sampler
from branchgrpo.types import Subtree, TreeKey
from tools.tiny_flux.model import make_t5_tokenizer

PROMPTS = [
    "a red circle on white",
    "the number 38 in black on yellow above a blue star left of a green square",
]
NEGATIVE = "the number 12 in red on white"
STEPS = 4
TREES = tuple(
    Subtree(TreeKey("run", 0, prompt, tree), prompt, 0) for prompt, tree in ((0, 0), (1, 0), (1, 1))
)

TOKENS = 24
"""Tokens of a prompt that the tests pad to."""


def save_small_wan(folder: Path, seed: int = 0) -> Path:
    """Write it with WanPipeline.save_pretrained; all scales are those of the full model (8 × 8
    pixels, 4 frames)."""
    from diffusers import UniPCMultistepScheduler, WanPipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = make_t5_tokenizer(TOKENS)
        pipe = WanPipeline(
            tokenizer=tokenizer,
            text_encoder=_text_encoder(len(tokenizer)),
            vae=_autoencoder(),
            scheduler=UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
            transformer=_transformer(),
        )
    pipe.save_pretrained(folder)
    return folder


def _transformer() -> torch.nn.Module:
    from diffusers import WanTransformer3DModel

    found = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
    )
    with torch.no_grad():
        found.proj_out.weight.mul_(3.0)  # velocities about as large as the noise
    return found


def _autoencoder() -> torch.nn.Module:
    from diffusers import AutoencoderKLWan

    found = AutoencoderKLWan(base_dim=4, num_res_blocks=1)
    with torch.no_grad():
        found.decoder.conv_out.weight.mul_(2.0)  # pictures with contrast
    return found


def _text_encoder(vocabulary: int) -> torch.nn.Module:
    from transformers import UMT5Config, UMT5EncoderModel

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary, relative_attention_num_buckets=8, dropout_rate=0.0, **sizes
        )
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
        plan, subtrees=TREES, x=roots, start=0, stop=steps, conditioning=model.encode(PROMPTS)
    ).frontier


def stock(folder: Path) -> Any:
    """diffusers' pipeline; its scheduler makes its own noise levels, and takes steps of first
    order, which are Euler's."""
    from diffusers import UniPCMultistepScheduler, WanPipeline

    pipe = WanPipeline.from_pretrained(folder)
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
        guidance_scale=model.options.true_cfg,
        latents=roots.clone(),
        max_sequence_length=TOKENS,
        callback_on_step_end=keep,
        output_type="np",
    ).frames
    return kept["latents"], np.asarray(made)
