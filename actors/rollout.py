"""The rollout worker: encodes prompts and grows segments of trees with the weights it was given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from actors.calls import RolloutCalls
from actors.devices import prepare
from branchgrpo.config.schema import Config
from branchgrpo.data.encodings import Encodings
from branchgrpo.models import weights as wire
from branchgrpo.models.base import ALL_PARTS, Adapter, ModelOptions, Part
from branchgrpo.report.contact_sheet import few
from branchgrpo.rollout.sampler import Sampler
from branchgrpo.rollout.segment import Segment
from branchgrpo.types import (
    EVALUATION,
    F32,
    U8,
    BranchPlan,
    Conditioning,
    EncodedPrompts,
    GrownSegment,
    LeafMedia,
    NodeViews,
    Sample,
    SegmentHeader,
    SegmentRequest,
    Subtree,
    TreePayload,
    WeightUpdate,
)

FINGERPRINT_ROWS = 2


class RolloutWorker(RolloutCalls):
    """Plain class; the cluster makes an actor of it. All work is a pure function of keys, weights
    and inputs."""

    def __init__(self, config: Config, index: int):
        self.config = config
        self.index = index
        self.version = 0

    def configure(self, config: Config) -> None:
        """Begin again with the untrained model, for this config; resources stay as they were."""
        self.config, self.version = config, 0
        self.let_go()  # before the new one comes
        prepare(config.rollout)
        self.serve(config, config.model.build(config.rollout.device, rollout_parts(config)))

    def let_go(self) -> None:
        """Hold no model any more."""
        for one in ("model", "training", "evaluation"):
            vars(self).pop(one, None)

    def serve(self, config: Config, model: Adapter) -> None:
        """Work with this model from now on; `version` says whose weights it has."""
        self.config, self.model = config, model
        size = config.evaluation.height, config.evaluation.width
        judged = model.in_evaluation(*size)
        self.training = self.evaluation = _Drawing(config, config.model, model)
        if judged is not model:
            self.evaluation = _Drawing(config, config.evaluated, judged)

    def __repr__(self) -> str:
        return f"rollout-{self.index}"

    def ping(self) -> None:
        """Is it alive?"""

    def ready(self) -> None:
        """Load the model."""
        self.configure(self.config)

    def encode(self, samples: list[Sample], evaluated: bool = False) -> list[Any]:
        """Encode a batch of records; returns EncodedPrompts.objects. evaluated: for held-out
        pictures.

        Encoded here, or read where model.encode is precompute. Raises UserError for records that
        were not encoded.
        """
        drawing = self.evaluation if evaluated else self.training
        if encodings := drawing.encodings:
            truncated, conditioning = encodings.truncated(samples), encodings.conditioning(samples)
        else:
            model = drawing.model
            truncated, conditioning = model.truncated(samples), model.encode(samples)
        return EncodedPrompts(
            truncated=truncated, bytes=conditioning.nbytes, conditioning=conditioning.split()
        ).objects()

    def grow(self, plan: BranchPlan, request: SegmentRequest, *inputs: Any) -> list[Any]:
        """Grow a segment; returns GrownSegment.objects.

        inputs: the Conditioning of each of request.prompts; then, but at level 0, where they are
        drawn, the subtrees' root latents as `grow` returned them. Raises RuntimeError when the
        weights are not those that are asked for.
        """
        subtrees, prompts = request.subtrees, request.prompts
        conditioning, roots = inputs[: len(prompts)], inputs[len(prompts) :]
        start, stop = request.start, request.stop
        if request.version != self.version:
            raise RuntimeError(
                f"{self!r} has weights v{self.version}: asked to grow with weights "
                f"v{request.version}"
            )
        # a task is of one iteration
        evaluated = subtrees[0].key.iteration == EVALUATION
        drawing = self.evaluation if evaluated else self.training
        x = self._stack(roots) if start else drawing.sampler.roots(plan, subtrees)
        segment = drawing.sampler.grow(
            plan,
            subtrees=tuple(
                replace(one, prompt_index=prompts.index(one.prompt_index)) for one in subtrees
            ),
            x=x,
            start=start,
            stop=stop,
            conditioning=Conditioning.joined(conditioning),
            clean=request.clean,
            viewed=request.viewed,
        )
        kept, dtype = wire.to_numpy(segment.kept)
        payload = TreePayload(
            subtree=segment.kept_subtree,
            node=segment.kept_node,
            latents=kept,
            dtype=dtype,
            parent=segment.parent_row,
            velocity=segment.velocity.cpu().numpy(),
        )
        header = SegmentHeader(
            subtrees=subtrees,
            start=start,
            stop=stop,
            policy_version=request.version,
            log_prob=segment.log_prob,
            forwards=segment.forwards,
            payload_bytes=kept.nbytes + payload.velocity.nbytes,
            halved=segment.halved,
        )
        views = drawing.views(segment, subtrees) if request.viewed else None
        if stop == plan.steps:
            before = drawing.model.decodings_halved
            media = LeafMedia(drawing.model.decode(segment.frontier.float()), subtrees)
            halved = segment.halved + drawing.model.decodings_halved - before
            header = replace(header, halved=halved)
            return GrownSegment(header=header, payload=payload, views=views, media=media).objects()
        frontier, _ = wire.to_numpy(segment.frontier)
        nodes = tuple(np.ascontiguousarray(node) for node in frontier)
        return GrownSegment(header=header, payload=payload, views=views, frontier=nodes).objects()

    def some(self, media: LeafMedia, rows: Sequence[int]) -> U8:
        """Pixels [n, F, H, W, 3] of these rows, of videos a few frames."""
        return np.ascontiguousarray(media.pixels[list(rows)][:, few(media.pixels.shape[1])])

    def load_weights(self, update: WeightUpdate, *chunks: list[U8]) -> str:
        """Replace the trained weights. Returns the digest of what the model then holds.

        Raises ValueError when bytes were damaged on the way or don't fit the model; `grow` then
        refuses every version, until a later call succeeds: the model may hold anything.
        """
        self.version = -1  # of no update
        found = wire.load_weights(update, chunks, self.model.trainable())
        self.version = update.version
        return found

    def fingerprint(self) -> F32:
        """Velocity at a fixed input, see `fingerprint`."""
        return fingerprint(self.model)

    def _stack(self, roots: tuple[Any, ...]) -> torch.Tensor:
        return torch.stack(
            [wire.to_torch(root, self.config.rollout.storage_dtype) for root in roots]
        )


class _Drawing:
    """The model as it draws in training, or in evaluation: the networks are the same."""

    def __init__(self, config: Config, options: ModelOptions, model: Adapter):
        self.model = model
        self.encodings = Encodings.open(options) if options.precomputed else None
        self.sampler = Sampler(
            model=model,
            seed=config.run.seed,
            storage=wire.dtype_named(config.rollout.storage_dtype),
            max_batch=config.rollout.max_batch,
            keep_velocity=config.keeps_behaviour_mean,
        )

    def views(self, segment: Segment, subtrees: Sequence[Subtree]) -> NodeViews:
        """Pictures of what the nodes of a segment would have become."""
        shown = np.zeros((0, 1, 1, 3), np.uint8)
        if segment.viewed:
            pixels = self.model.decode(segment.clean)
            shown = np.ascontiguousarray(pixels[:, pixels.shape[1] // 2])
        return NodeViews(
            keys=tuple(subtrees[owner].key for owner, _ in segment.viewed),
            node=np.array([node for _, node in segment.viewed], np.int32),
            pixels=shown,
        )


def rollout_parts(config: Config) -> tuple[Part, ...]:
    """What of the model growing trees needs."""
    return ("denoiser", "decoder") if config.model.precomputed else ALL_PARTS


def fingerprint(model: Any) -> F32:
    """Velocity of a model at an input that needs neither prompts nor encoders: tells whose weights
    it has."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(FINGERPRINT_ROWS, *model.latent_shape, generator=generator).to(model.device)
    sigma = torch.linspace(0.9, 0.3, FINGERPRINT_ROWS).to(model.device)
    cond = model.fingerprint_conditioning(FINGERPRINT_ROWS)
    with torch.no_grad(), model.without_gradient():
        out: F32 = model.velocity(x, sigma, cond).detach().cpu().numpy()
    return out
