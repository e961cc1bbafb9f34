"""What one copy of the model weighs, and what a latent costs in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from branchgrpo.config.schema import Config
from branchgrpo.estimate.work import Work

if TYPE_CHECKING:
    from branchgrpo.models.base import Adapter

BYTES = {"float32": 4, "bfloat16": 2}
"""Of a number."""


@dataclass(frozen=True, kw_only=True)
class ModelNeeds:
    """Bytes are of one copy, work is of one latent."""

    parameters: int = 0  # of the denoiser, adapters included
    trained: int = 0  # numbers that learn
    adapted: bool = False  # those are adapters
    tokens: int = 0  # of a latent and its text in the denoiser
    weights: float = 0.0  # bytes of the denoiser
    trained_bytes: float = 0.0  # of what learns, as it computes and is published
    trained_32: float = 0.0  # bytes of it that are float32 already, and need no masters
    largest_block: int = 0  # parameters
    outside_blocks: int = 0  # parameters
    decoder: float = 0.0  # bytes
    encoders: float = 0.0  # bytes
    latent: int = 0  # numbers
    pixels: int = 0  # numbers of a picture or video in training
    evaluated: float = 1.0  # numbers of a latent in evaluation, to those in training
    text: float = 0.0  # bytes of a prompt's encoding, in the dtype of what encoded it
    forward: Work = field(default_factory=Work)
    evaluation: Work = field(default_factory=Work)  # a forward of that
    training: Work = field(default_factory=Work)  # forward and backward
    decode: Work = field(default_factory=Work)
    decoding: float = 0.0  # bytes that are alive at most as a picture of evaluation is decoded


def model_needs(config: Config) -> ModelNeeds | None:
    """Counted on the meta device; None where the family does not say. Raises UserError where the
    model's sizes are not known."""
    model = config.model.without_weights(("denoiser", "decoder"))
    if model is None:
        return None
    from branchgrpo.estimate import denoiser

    tokens = config.model.text_tokens
    forward = denoiser.forward(model, model.latent_shape, tokens)
    decode, pixels = denoiser.decode(model, model.latent_shape)
    evaluation, decoding = forward, decode
    judged = model.in_evaluation(config.evaluation.height, config.evaluation.width)
    if judged is not model:
        evaluation = denoiser.forward(judged, judged.latent_shape, tokens)
    if config.evaluated.picture_size != config.model.picture_size:
        decoding, _ = denoiser.decode(judged, judged.latent_shape)
    return _weights(
        config,
        model,
        tokens=model.tokens(model.fingerprint_conditioning(1, tokens)),
        latent=prod(model.latent_shape),
        pixels=pixels,
        evaluated=prod(judged.latent_shape) / prod(model.latent_shape),
        text=BYTES[config.model.dtype]
        * float(sum(one.numel() for one in model.fingerprint_conditioning(1, tokens).values())),
        forward=forward,
        evaluation=evaluation,
        training=denoiser.training(model, model.latent_shape, tokens),
        decode=decode,
        decoding=decoding.peak,
    )


def _weights(config: Config, model: Adapter, **work: object) -> ModelNeeds:
    own, learning = list(model.module.parameters()), list(model.trainable().values())
    blocks = [
        sum(one.numel() for one in part.parameters()) for part in model.blocks_of(model.module)
    ]
    vae = list(model.decoder.parameters()) if model.decoder else []
    total = sum(one.numel() for one in own)
    return ModelNeeds(
        parameters=total,
        adapted=model.adapted,
        trained=sum(one.numel() for one in learning),
        weights=float(sum(one.nbytes for one in own)),
        trained_bytes=float(sum(one.nbytes for one in learning)),
        trained_32=float(sum(one.nbytes for one in learning if one.element_size() == 4)),
        largest_block=max(blocks, default=0),
        outside_blocks=total - sum(blocks),
        decoder=float(sum(one.nbytes for one in vae)),
        encoders=float(config.model.text_encoders() * BYTES[config.model.dtype]),
        **work,  # type: ignore[arg-type]
    )
