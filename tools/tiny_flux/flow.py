"""Second stage: flow matching of the transformer together with the two text encoders."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tools.tiny_flux.common import Progress, StageClock, set_learning_rate
from tools.tiny_flux.text import CaptionTokens, embed

if TYPE_CHECKING:
    from diffusers import FluxPipeline

BATCH = 128
PEAK_RATE = 1.5e-3
WARM_UP = 100
DECAY_FROM = 0.55  # share of the steps after which the learning rate falls linearly
LAST_RATE = 0.02  # share of the peak that the fall ends at
TIME_SHIFT = 0.6  # mean of the logit-normal noise levels: more of the steps see strong noise
EMPTY_SHARE = 0.1  # share of the captions that are emptied, for guidance
EMA_DECAY = 0.999
SAVE_EVERY = 500


@dataclass(frozen=True)
class FlowData:
    """Packed latents ``[count, tokens, channels]``, their captions' tokens and the empty
    caption's."""

    latents: torch.Tensor
    tokens: CaptionTokens
    empty: CaptionTokens
    text_ids: torch.Tensor
    image_ids: torch.Tensor

    @classmethod
    def of(cls, pipe: FluxPipeline, captions: Sequence[str], latents: torch.Tensor) -> FlowData:
        side = int(latents.shape[1] ** 0.5)
        tokens = CaptionTokens.of(pipe, captions)
        return cls(
            latents=latents,
            tokens=tokens,
            empty=CaptionTokens.of(pipe, [""]),
            text_ids=torch.zeros(tokens.t5.shape[1], 3),
            image_ids=pipe._prepare_latent_image_ids(
                1, side, side, torch.device("cpu"), torch.float32
            ),
        )

    def velocity(
        self,
        transformer: torch.nn.Module,
        noisy: torch.Tensor,
        level: torch.Tensor,
        sequence: torch.Tensor,
        pooled: torch.Tensor,
        guidance: torch.Tensor,
    ) -> torch.Tensor:
        """Return the transformer's velocity at noise levels ``level`` (0 clean, 1 noise), as the
        pipeline calls it."""
        output: torch.Tensor = transformer(
            hidden_states=noisy,
            timestep=level,
            guidance=guidance,
            pooled_projections=pooled,
            encoder_hidden_states=sequence,
            txt_ids=self.text_ids,
            img_ids=self.image_ids,
            return_dict=False,
        )[0]
        return output


@dataclass(frozen=True)
class NoisyBatch:
    """Latents mixed with noise, and what they are made of."""

    picked: torch.Tensor
    noisy: torch.Tensor
    level: torch.Tensor
    velocity: torch.Tensor

    @classmethod
    def draw(cls, latents: torch.Tensor, size: int, generator: torch.Generator) -> NoisyBatch:
        picked = torch.randint(0, len(latents), (size,), generator=generator)
        clean = latents[picked]
        level = torch.sigmoid(torch.randn(size, generator=generator) + TIME_SHIFT)
        noise = torch.randn(clean.shape, generator=generator)
        mix = level[:, None, None]
        return cls(picked, (1 - mix) * clean + mix * noise, level, noise - clean)


class FlowTraining:
    """What a flow training changes as it runs, with its saving and loading."""

    def __init__(self, pipe: FluxPipeline, seed: int) -> None:
        self.pipe = pipe
        self.model = torch.nn.ModuleList([pipe.transformer, pipe.text_encoder, pipe.text_encoder_2])
        self.model.train().requires_grad_(True)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=PEAK_RATE, weight_decay=1e-2, betas=(0.9, 0.99)
        )
        self.generator = torch.Generator().manual_seed(seed + 1)
        self.clock = StageClock()
        self.step = 0

    def advance(self, data: FlowData, rate: float) -> float:
        """Make one step and return the mean loss of the last steps."""
        set_learning_rate(self.optimizer, rate)
        loss = self._loss(data)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        decay = min(EMA_DECAY, (2 + self.step) / (11 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.model.parameters()), 1 - decay
            )
        self.step += 1
        return self.clock.add(loss)

    def _loss(self, data: FlowData) -> torch.Tensor:
        batch = NoisyBatch.draw(data.latents, BATCH, self.generator)
        emptied = torch.rand(BATCH, generator=self.generator) < EMPTY_SHARE
        tokens = data.tokens[batch.picked].replaced(emptied, data.empty)
        sequence, pooled = embed(self.pipe.text_encoder, self.pipe.text_encoder_2, tokens)
        predicted = data.velocity(
            self.pipe.transformer,
            noisy=batch.noisy,
            level=batch.level,
            sequence=sequence,
            pooled=pooled,
            guidance=torch.ones(BATCH),
        )
        return (predicted - batch.velocity).pow(2).mean()

    def save(self, path: Path, settings: dict[str, Any]) -> None:
        state = {
            "settings": settings,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "seconds": self.clock.seconds,
            "step": self.step,
        }
        torch.save(state, path)

    def load(self, path: Path, settings: dict[str, Any]) -> None:
        """Go on from the state at ``path``, if there is one and it was saved with the same
        settings."""
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        if state["settings"] != settings:
            return
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.clock.spent = float(state["seconds"])
        self.step = int(state["step"])


def train_flow(
    pipe: FluxPipeline,
    data: FlowData,
    *,
    steps: int,
    seed: int,
    progress: Progress,
    resume: Path,
    settings: dict[str, Any],
) -> dict[str, float]:
    """Train the transformer and the text encoders in place and leave the averaged weights in them.

    The state is saved to ``resume`` every few hundred steps; a file with the same ``settings`` is
    continued from.
    """
    training = FlowTraining(pipe, seed)
    training.load(resume, settings)
    while training.step < steps:
        progress(training.step + 1, training.advance(data, _rate(training.step, steps)))
        if training.step % SAVE_EVERY == 0:
            training.save(resume, settings)
    training.model.load_state_dict(training.average.state_dict())
    training.model.eval().requires_grad_(False)
    return training.clock.record(steps)


def _rate(step: int, steps: int) -> float:
    left = (steps - step) / (steps * (1 - DECAY_FROM))
    return PEAK_RATE * min(1.0, (step + 1) / WARM_UP, max(LAST_RATE, left))
