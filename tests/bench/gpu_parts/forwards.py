"""Parts 1 to 3: forwards and backwards of the denoiser at FLUX.1-dev's shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from support.records import records
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from branchgrpo.algo import kernels
from branchgrpo.algo.schedule import static
from branchgrpo.estimate import denoiser
from branchgrpo.estimate.cards import recognised
from branchgrpo.estimate.work import Work
from branchgrpo.types import BranchPlan
from gpu_parts.card import GB, Row, Setting, attempts, described, matmul_tflops
from gpu_parts.random_models import RandomFlux, write_folder

RANK = 32
ROWS = (1, 2, 4, 8, 16, 32)
BATCHES = (1, 2, 4, 8)
BACKENDS = ("", "_native_flash", "_native_cudnn", "flash", "_flash_3")
"""Of attention, as diffusers names them; the first is its default."""
CLIP_RANGES = (1e-4, 1e-3)


def options(setting: Setting, **keys: Any) -> RandomFlux:
    """FLUX.1-dev at 720², in bfloat16."""
    side = 64 if setting.small else 720
    folder = write_folder(setting.folder / "flux", "flux", setting.small)
    sizes = {"height": side, "width": side, "max_sequence_length": 16 if setting.small else 512}
    return RandomFlux(name="flux", path=str(folder), dtype="bfloat16", **sizes, **keys)


def inputs(model: Any, rows: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(x, σ, conditioning) of one forward."""
    draw = torch.Generator(model.device).manual_seed(3)
    x = torch.randn(rows, *model.latent_shape, generator=draw, device=model.device)
    cond = model.conditioning(model.encode(records(["a"])))
    sigma = torch.full((rows,), 0.9, device=model.device)
    return x, sigma, {name: array.expand(rows, *array.shape[1:]) for name, array in cond.items()}


def row_tflop(options: Any) -> float:
    """TFLOP of a forward of one latent, counted on the meta device."""
    model = options.build("meta", ("denoiser",))
    pair = (2,) if options.guided else ()
    kind = {"device": "meta", "dtype": torch.bfloat16}
    cond = {
        name: torch.empty(1, *pair, *shape, **kind) for name, shape in options.text_shapes().items()
    }
    x, sigma = torch.empty(1, *model.latent_shape, device="meta"), torch.ones(1, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.velocity(x, sigma, cond)
    return counter.get_total_flops() / 1e12


def training_work(options: Any) -> Work:
    """What the product estimates of a forward and backward of one latent."""
    model = options.build("meta", ("denoiser",))
    return denoiser.training(model, model.latent_shape, options.max_sequence_length)


def chosen(setting: Setting, counts: tuple[Any, ...]) -> tuple[Any, ...]:
    """Without a card, the first two: they are the same code."""
    return counts[:2] if setting.small else counts


class Forwards:
    """Times forwards of one model."""

    def __init__(self, setting: Setting, model: Any):
        self.setting, self.model = setting, model
        self.tflop, self.peak = row_tflop(model.options), matmul_tflops(setting)

    def __call__(self, case: Row) -> Row:
        """Of case["rows"] latents, without a gradient."""
        arguments = inputs(self.model, case["rows"])

        def forward() -> None:
            with torch.no_grad():
                self.model.velocity(*arguments)

        repeats = 3 if case["rows"] <= 8 else 1
        seconds = self.setting.seconds(forward, repeats)
        rate = case["rows"] * self.tflop / seconds
        return {
            "ms": 1e3 * seconds,
            "ms_row": 1e3 * seconds / case["rows"],
            "tflops": rate,
            "share_of_matmul": rate / self.peak,
        }


def eager(setting: Setting) -> Iterator[Row]:
    """Forwards of 1 … 32 latents, as the product computes them by default."""
    model = options(setting).build(setting.device, ("denoiser",))
    forwards = Forwards(setting, model)
    yield {"row_tflop": forwards.tflop, "matmul_tflops": forwards.peak}
    yield from attempts(setting, [{"rows": n} for n in chosen(setting, ROWS)], forwards)


def compiled(setting: Setting) -> Iterator[Row]:
    """The same with compiled blocks; the first call compiles."""
    model = options(setting, compile=not setting.small).build(setting.device, ("denoiser",))
    forwards = Forwards(setting, model)
    cases = [{"rows": n, "compiled": True} for n in chosen(setting, (1, 4, 2, 16))]
    yield from attempts(setting, cases, forwards, needs=10 if setting.cuda else 0)


def attention(setting: Setting) -> Iterator[Row]:
    """Four latents with each of diffusers' attention backends that works here."""

    def forward(case: Row) -> Row:
        model = options(setting, attention=case["attention"]).build(setting.device, ("denoiser",))
        return Forwards(setting, model)(case)

    yield from attempts(
        setting,
        [{"rows": 4, "attention": name} for name in chosen(setting, BACKENDS)],
        forward,
    )


def adapters(setting: Setting) -> Iterator[Row]:
    """Four latents without adapters, and with adapters that compute in float32, TF32 and
    bfloat16."""

    def forward(case: Row) -> Row:
        rank = 0 if case["adapters"] == "none" else RANK
        model = options(setting, lora_rank=rank).build(setting.device, ("denoiser",))
        kind = torch.bfloat16 if case["adapters"] == "bfloat16" else torch.float32
        if rank:
            for value in model.trainable().values():
                value.data = value.data.to(kind)
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if case["adapters"] == "tf32" else "highest")
        try:
            return Forwards(setting, model)(case)
        finally:
            torch.set_float32_matmul_precision(before)

    kinds = ("none", "float32", "tf32", "bfloat16")
    yield from attempts(setting, [{"rows": 4, "adapters": kind} for kind in kinds], forward)


def backward(setting: Setting) -> Iterator[Row]:
    """Forward and backward of adapters with checkpointing, micro-batches of 1 … 8, beside what was
    estimated."""
    keys = {"lora_rank": RANK, "gradient_checkpointing": True}
    model = options(setting, **keys).build(setting.device, ("denoiser",))
    tflop, peak = row_tflop(model.options), matmul_tflops(setting)
    row, card = training_work(model.options), recognised(described(setting.device)["card"])
    kept = sum(value.nbytes for value in model.module.parameters())
    kept += sum(value.nbytes for value in model.trainable().values())  # their gradients

    def both(case: Row) -> Row:
        arguments = inputs(model, case["micro_batch"])
        estimate = {"estimated_peak_gb": (kept + case["micro_batch"] * row.peak) / GB}
        if card:
            estimate["estimated_ms"] = 1e3 * case["micro_batch"] * card.seconds(row)

        def work() -> None:
            model.velocity(*arguments).square().mean().backward()

        seconds = setting.seconds(work, repeats=2)
        rate = case["micro_batch"] * 4 * tflop / seconds  # forward, again, and twice backward
        return estimate | {
            "ms": 1e3 * seconds,
            "ms_row": 1e3 * seconds / case["micro_batch"],
            "tflops": rate,
            "share_of_matmul": rate / peak,
        }

    cases = [{"micro_batch": n} for n in chosen(setting, BATCHES)]
    yield from attempts(setting, cases, both)


def ratio(setting: Setting, compile: bool = False) -> Iterator[Row]:
    """|ratio − 1| of unchanged weights: children drawn from a forward of 8 latents without a
    gradient, and judged by forwards of other sizes."""
    model = options(setting, lora_rank=RANK, gradient_checkpointing=True, compile=compile).build(
        setting.device, ("denoiser",)
    )
    steps = (("dance",) * 9 + ("ode",), (0.3,) * 9 + (0.0,))
    plan = BranchPlan(static(10, 3.0).levels, (1,) * 10, *steps)
    rows = 2 if setting.small else 8
    x, _, cond = inputs(model, rows)
    at = torch.full((rows,), 3, device=model.device)
    sigma = torch.from_numpy(plan.sigmas).to(model.device)[at]
    draw = torch.Generator(model.device).manual_seed(4)
    noise = torch.randn(x.shape, generator=draw, device=model.device)

    def judged(x: Tensor, size: int, grad: bool) -> tuple[Tensor, Tensor]:
        parts = []
        for first in range(0, rows, size):
            part = slice(first, first + size)
            texts = {name: array[part] for name, array in cond.items()}
            with torch.set_grad_enabled(grad):
                parts.append(model.velocity(x[part], sigma[part], texts).detach())
        return kernels.transition(plan, at, x, torch.cat(parts))

    def compare(case: Row) -> Row:
        storage = getattr(torch, case["storage"])
        stored = x.to(storage)
        mean, std = judged(stored, rows, False)
        child = (mean + std * noise).to(storage)
        old = kernels.log_prob(child, mean, std)
        new = kernels.log_prob(child, *judged(stored, case["micro_batch"], case["grad"]))
        off = (torch.exp(new - old) - 1).abs()
        shares = {
            f"clipped_{limit:g}": float((off > limit).float().mean()) for limit in CLIP_RANGES
        }
        return {"ratio_off_max": float(off.max()), "ratio_off_mean": float(off.mean())} | shares

    cases = [
        {"compiled": compile, "storage": storage, "micro_batch": size, "grad": grad}
        for storage in ("float32", "bfloat16")
        for size in sorted({1, rows // 2, rows})
        for grad in (False, True)
    ]
    yield from attempts(setting, cases, compare)


def ratio_compiled(setting: Setting) -> Iterator[Row]:
    """The same with compiled blocks."""
    yield from ratio(setting, compile=not setting.small)
