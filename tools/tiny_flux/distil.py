"""Third stage: guidance distillation, as FLUX.1-dev is distilled.

The student learns to give in one call, from the guidance number it is handed, what the teacher
gives in two calls with classifier-free guidance of that strength.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from tools.tiny_flux.common import Progress, StageClock, set_learning_rate
from tools.tiny_flux.flow import FlowData, NoisyBatch
from tools.tiny_flux.text import embed

if TYPE_CHECKING:
    from diffusers import FluxPipeline

BATCH = 96
PEAK_RATE = 6e-4
WARM_UP = 30
LAST_RATE = 0.02
GUIDANCE_RANGE = (1.0, 5.0)


def distil_guidance(
    pipe: FluxPipeline, data: FlowData, *, steps: int, seed: int, progress: Progress
) -> dict[str, float]:
    """Train the transformer in place to follow its guidance input; the text encoders stay as they
    are."""
    student = pipe.transformer.train().requires_grad_(True)
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=PEAK_RATE, weight_decay=0.0, betas=(0.9, 0.99)
    )
    generator = torch.Generator().manual_seed(seed + 2)
    clock = StageClock()
    for step in range(steps):
        set_learning_rate(
            optimizer, PEAK_RATE * min(1.0, (step + 1) / WARM_UP, max(LAST_RATE, 1 - step / steps))
        )
        loss = _distil_loss(pipe, teacher, data, generator)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        progress(step + 1, clock.add(loss))
    student.eval().requires_grad_(False)
    return clock.record(steps)


def _distil_loss(
    pipe: FluxPipeline, teacher: torch.nn.Module, data: FlowData, generator: torch.Generator
) -> torch.Tensor:
    batch = NoisyBatch.draw(data.latents, BATCH, generator)
    low, high = GUIDANCE_RANGE
    guidance = low + (high - low) * torch.rand(BATCH, generator=generator)
    with torch.no_grad():
        sequence, pooled = embed(pipe.text_encoder, pipe.text_encoder_2, data.tokens[batch.picked])
        empty_sequence, empty_pooled = embed(pipe.text_encoder, pipe.text_encoder_2, data.empty)
        both = data.velocity(
            teacher,
            noisy=batch.noisy.repeat(2, 1, 1),
            level=batch.level.repeat(2),
            sequence=torch.cat([sequence, empty_sequence.expand_as(sequence)]),
            pooled=torch.cat([pooled, empty_pooled.expand_as(pooled)]),
            guidance=torch.ones(2 * BATCH),
        )
        with_caption, without = both.chunk(2)
        target = without + guidance[:, None, None] * (with_caption - without)
    predicted = data.velocity(
        pipe.transformer,
        noisy=batch.noisy,
        level=batch.level,
        sequence=sequence,
        pooled=pooled,
        guidance=guidance,
    )
    return (predicted - target).pow(2).mean()
