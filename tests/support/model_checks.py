"""What every picture family must do, held against diffusers' own pipeline on a small folder; the
families' tests call these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from branchgrpo.algo.plan import ode_plan
from branchgrpo.models.base import ALL_PARTS
from branchgrpo.models.pipeline import PipelineAdapter
from branchgrpo.models.pipeline_options import PipelineModel
from branchgrpo.rollout.sampler import Sampler
from branchgrpo.types import Subtree, TreeKey
from support.records import records

PROMPTS = ["the number 38 in black on yellow", "a red circle"]
NEGATIVE = "the number 12"
STEPS, SCALE = 4, 3.0
SHIFT = 2.0
"""Of runs that set sampling.shift: no small model's own."""

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Family:
    """A family with a folder of its own."""

    options: Callable[..., PipelineModel]  # the options' class, and what the folder needs
    folder: Path
    guidance: str  # the pipeline's name for true_cfg
    # parts that the folder lacks, which the stock pipeline wants to be told
    absent: dict[str, None] = field(default_factory=dict)
    text: int = 24  # tokens that max_sequence_length allows in these checks

    def make(self, **changes: Any) -> PipelineModel:
        """Options for the folder."""
        return self.options(
            **{
                "path": str(self.folder),
                "height": 32,
                "width": 32,
                "max_sequence_length": self.text,
                "true_cfg": 1.0,
            }
            | changes
        )

    def build(self, parts: tuple[Any, ...] = ALL_PARTS, **changes: Any) -> Any:
        """The model, with its adapters' random start fixed."""
        torch.manual_seed(0)
        return self.make(**changes).build("cpu", parts)

    def stock(self, folder: Path | None = None) -> Any:
        """diffusers' pipeline as it comes; it makes its own noise levels."""
        import diffusers

        pipe = getattr(diffusers, self.make().pipeline).from_pretrained(
            folder or self.folder, **self.absent
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe


def grown(
    model: PipelineAdapter, steps: int = STEPS, shift: float | None = None
) -> tuple[Tensor, Tensor]:
    """(noises, clean latents) of one chain for the first prompt and two for the second, two rows a
    forward, as evaluation grows them."""
    trees = tuple(
        Subtree(TreeKey("run", 0, prompt, tree), prompt, 0)
        for prompt, tree in ((0, 0), (1, 0), (1, 1))
    )
    sampler = Sampler(model, 5, torch.float32, 2)
    plan = ode_plan(model.options.schedule(steps, shift))
    roots = sampler.roots(plan, trees)
    return roots, sampler.grow(
        plan,
        subtrees=trees,
        x=roots,
        start=0,
        stop=steps,
        conditioning=model.encode(records(PROMPTS)),
    ).frontier


def drawn(
    family: Family, pipe: Any, options: PipelineModel, roots: Tensor, steps: int = STEPS
) -> tuple[Tensor, np.ndarray]:
    """(clean latents, pictures 0 … 1 [B, H, W, 3]) by the stock pipeline."""
    seen = []

    def keep(_: Any, step: int, time: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(values["latents"])
        return {}

    call = options.stock_call()
    assert family.guidance in call
    if "negative_prompt" in call:
        call["negative_prompt"] = [call["negative_prompt"]] * 3
    images = pipe(
        prompt=[PROMPTS[0], PROMPTS[1], PROMPTS[1]],
        num_inference_steps=steps,
        latents=roots.clone(),
        output_type="np",
        callback_on_step_end=keep,
        **call,
    ).images
    latents = seen[-1]
    if latents.shape != roots.shape:  # taken as a grid, kept as a list of its places
        latents = latents.transpose(1, 2).reshape(roots.shape)
    return latents, images


def draws_the_pipelines_pictures(
    family: Family,
    height: int,
    width: int,
    scale: float,
    negative: str = NEGATIVE,
    steps: int = STEPS,
) -> float:
    """Latents and pictures of the ODE are those of diffusers' pipeline; returns the largest
    difference of latents."""
    model = family.build(height=height, width=width, true_cfg=scale, negative_prompt=negative)
    roots, found = grown(model, steps)
    latents, images = drawn(
        family, pipe=family.stock(), options=model.options, roots=roots, steps=steps
    )
    assert found.shape == latents.shape == (3, *model.latent_shape) and images.shape == (
        3,
        height,
        width,
        3,
    )
    torch.testing.assert_close(found, latents, rtol=0, atol=TOLERANCE)
    with torch.no_grad():
        floats = (model.pixels(found)[:, :, 0] / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    # half, since these go from 0 to 1, not from −1 to 1
    assert np.abs(floats - images).max() <= TOLERANCE / 2
    pictures = model.decode(found)
    assert (
        pictures.shape == (3, 1, height, width, 3)
        and np.abs(pictures[:, 0].astype(int) - np.round(255 * images)).max() <= 1
    )
    # there is something to compare
    assert (
        np.abs(images[1] - images[2]).max() > 0.02
        and float((latents[0] - roots[0]).abs().max()) > 0.1
    )
    return float((found - latents).abs().max())


def text_matters(family: Family) -> None:
    """The prompt, and the negative one, change the velocity."""
    model = family.build(true_cfg=SCALE, negative_prompt=NEGATIVE)
    x, sigma = inputs(model, 1)
    both, other, unwanted = (
        encoded(family.build(true_cfg=SCALE, negative_prompt=text), prompts)
        for text, prompts in CONTRASTS
    )
    found = velocity(model, x, sigma, both)
    assert float((found - velocity(model, x, sigma, other)).abs().max()) > 0.01
    assert float((found - velocity(model, x, sigma, unwanted)).abs().max()) > 0.01


CONTRASTS = ((NEGATIVE, PROMPTS[:1]), (NEGATIVE, PROMPTS[1:]), (PROMPTS[1], PROMPTS[:1]))


def inputs(model: PipelineAdapter, rows: int) -> tuple[Tensor, Tensor]:
    """(x, σ) of one forward."""
    return torch.randn(
        rows, *model.latent_shape, generator=torch.Generator().manual_seed(3)
    ), torch.linspace(1.0, 0.1, rows)


def encoded(model: PipelineAdapter, prompts: list[str]) -> dict[str, Tensor]:
    return model.conditioning(model.encode(records(prompts)))


def velocity(model: PipelineAdapter, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model.velocity(x, sigma, cond)


def move(model: PipelineAdapter) -> None:
    """Change every trainable parameter."""
    draw = torch.Generator().manual_seed(5)
    model.load(
        {
            name: value.detach() + 0.05 * torch.randn(value.shape, generator=draw)
            for name, value in model.trainable().items()
        }
    )


def rows_are_independent(family: Family, scale: float) -> None:
    """Prompts of different length in a batch give what each gives alone."""
    model = family.build(true_cfg=scale, negative_prompt=NEGATIVE)
    x, sigma = inputs(model, 2)
    together = velocity(model, x, sigma, encoded(model, PROMPTS))
    for row in range(2):
        alone = velocity(
            model, x[row : row + 1], sigma[row : row + 1], encoded(model, PROMPTS[row : row + 1])
        )
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=2e-5)


def guidance_is_two_plain_calls(
    family: Family, combined: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """`velocity` with guidance is `combined(wanted, unwanted)` of two without, and counts twice the
    tokens."""
    guided, plain = family.build(true_cfg=SCALE, negative_prompt=NEGATIVE), family.build()
    x, sigma = inputs(plain, 2)
    wanted, unwanted = (
        velocity(plain, x, sigma, encoded(plain, texts)) for texts in (PROMPTS, [NEGATIVE] * 2)
    )
    both = encoded(guided, PROMPTS)
    assert {tuple(array.shape[:2]) for array in both.values()} == {(2, 2)}
    found = velocity(guided, x, sigma, both)
    torch.testing.assert_close(found, combined(wanted, unwanted), rtol=0, atol=2e-5)
    assert float((found - wanted).abs().max()) > 0.05
    assert guided.tokens(both) == 2 * plain.tokens(
        {name: array[:, 0] for name, array in both.items()}
    )


def adapters_sit_in(family: Family, layers: set[str]) -> None:
    """LoRA trains exactly these layers' adapters, in the model's dtype, and begins at the base."""
    for dtype in ("float32", "bfloat16"):
        model, base = family.build(lora_rank=2, dtype=dtype), family.build(dtype=dtype)
        x, sigma = inputs(model, 2)
        assert {name.rpartition(".lora_")[0] for name in model.trainable()} == layers
        assert {value.dtype for value in model.trainable().values()} == {model.dtype}
        assert torch.equal(
            *(velocity(one, x, sigma, one.fingerprint_conditioning(2)) for one in (model, base))
        )


def checkpointing_keeps_the_gradient(family: Family, rank: int) -> None:
    """Every trainable parameter has a gradient; checkpointing computes the same one."""

    def count(calls: list[int], *_: Any) -> None:
        calls.append(1)

    found = []
    for again in (False, True):
        model = family.build(lora_rank=rank, gradient_checkpointing=again, true_cfg=SCALE)
        move(model)
        calls, blocks = [], model.blocks_of(model.denoiser)
        for block in blocks:
            block.register_forward_pre_hook(partial(count, calls))
        loss = model.velocity(*inputs(model, 2), model.fingerprint_conditioning(2)).square().mean()
        found.append(torch.autograd.grad(loss, list(model.trainable().values())))
        assert len(calls) == len(blocks) * (2 if again else 1)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True)) and any(
        one.any() for one in found[0]
    )


def long_prompts_are_counted(family: Family, longest: str, long: str) -> None:
    """`longest` just fits, `long` has one token more; what comes after the limit is not read."""
    model = family.build(("encoders",))
    assert model.truncated(records([longest, *PROMPTS, long, f"{long} circle"])) == 2
    cut, more = (model.texts([long + words * " circle"])["text"] for words in (12, 13))
    assert torch.equal(cut[:, -1], more[:, -1])


def probes_have_the_texts_shapes(family: Family, scale: float) -> None:
    """`fingerprint_conditioning` is fixed, finite, and of the shapes that `encode` gives, lengths
    aside."""
    model = family.build(true_cfg=scale)
    fixed = model.fingerprint_conditioning(3)
    again = model.fingerprint_conditioning(3)
    text = encoded(model, PROMPTS)
    assert fixed.keys() == text.keys() and all(
        torch.equal(fixed[name], again[name]) for name in fixed
    )
    assert all(
        array.ndim == text[name].ndim
        and (name.endswith("mask") or array.shape[-1] == text[name].shape[-1])
        for name, array in fixed.items()
    )
    x, sigma = inputs(model, 3)
    assert velocity(model, x, sigma, fixed).isfinite().all()


def bfloat16_is_near(family: Family) -> None:
    """The whole way in bfloat16 ends near float32's velocity and pictures."""
    full, half = family.build(true_cfg=SCALE), family.build(true_cfg=SCALE, dtype="bfloat16")
    x, sigma = inputs(full, 2)
    one, other = (velocity(model, x, sigma, encoded(model, PROMPTS)) for model in (full, half))
    assert other.dtype == torch.float32 and float((one - other).norm()) < 0.05 * float(one.norm())
    pictures = [model.decode(x).astype(int) for model in (full, half)]
    assert np.abs(pictures[0] - pictures[1]).mean() < 4


def blocks_are_compiled(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """`compile` reaches every repeated block."""
    reached: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: reached.append(self))
    model = family.build(("denoiser",), compile=True)
    assert reached and reached == model.blocks_of(model.denoiser)
