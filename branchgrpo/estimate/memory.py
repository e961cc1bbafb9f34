"""Memory of each role's process, by what holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from branchgrpo.config.schema import Config
from branchgrpo.estimate.model import ModelNeeds

PROCESS = 1.5e9
"""Bytes of a process on a GPU beside its tensors: the CUDA context with its kernels (0.5), the
workspaces of cuBLAS and cuDNN, NCCL's buffers, and what the allocator cannot use of its blocks."""
BLOCKS_AT_ONCE = 2
"""Blocks whose weights fsdp has gathered at once: the present one, and the next, prefetched."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """Of one process of a role: bytes that stay, and of work at each of its turns."""

    role: str
    count: int
    gpus: float  # that each reserves
    device: str  # cuda, or cpu
    resident: Mapping[str, float]  # bytes by what
    growing: Mapping[str, float]  # beside it while trees grow, with batches as configured
    updating: Mapping[str, float]  # beside it in the update
    least: float  # bytes of both turns at most, with batches of one

    @property
    def process(self) -> float:
        """Bytes beside tensors."""
        return PROCESS if self.device == "cuda" else 0.0

    @property
    def peak(self) -> float:
        """Bytes at most, with batches as configured."""
        return self._all(max(sum(self.growing.values()), sum(self.updating.values())))

    @property
    def smallest(self) -> float:
        """Bytes at most, with batches of one: what cannot be halved."""
        return self._all(self.least)

    def at(self, turn: str) -> float:
        """Bytes at most while trees grow, or in the update, with batches of one."""
        work: Mapping[str, float] = getattr(self, turn)
        return self._all(min(self.least, sum(work.values())))

    def _all(self, work: float) -> float:
        return sum(self.resident.values()) + work + self.process


def rollout(config: Config, model: ModelNeeds, count: int) -> Need:
    """A rollout worker: the denoiser as it was published, the decoder, and text encoders where
    prompts are encoded inline."""
    role = config.rollout
    growing, least = _growing(config, model)
    return Need(
        role="rollout",
        count=count,
        gpus=role.gpus,
        device=role.device,
        resident={"weights": model.weights, **_beside(config, model)},
        growing=growing,
        updating={},
        least=least,
    )


def learner(config: Config, model: ModelNeeds, shared: bool) -> Need:
    """A learner rank: weights, what AdamW keeps of those that learn, and a micro-batch. shared: it
    grows trees as well, with whole weights."""
    role = config.learner
    ranks = role.ranks if role.parallel == "fsdp" else 1
    full = not model.adapted
    resident, gathered = {"weights": model.weights / ranks}, 0.0
    if ranks > 1:
        if full:  # those that learn are the masters
            resident["weights"] = 4.0 * (model.parameters - model.trained) / ranks
        each = model.weights / model.parameters
        blocks = model.largest_block * BLOCKS_AT_ONCE + model.outside_blocks
        # gradients of a block are whole in float32 until they are scattered
        gathered = blocks * each + (model.largest_block * 4.0 if full else 0.0)
    elif role.ranks > 1:
        resident["DDP's buckets"] = model.trained_bytes
    resident |= optimiser_state(config, model, ranks)
    if config.loss.kl_beta and full:
        resident["frozen base"] = model.weights / ranks
    rows = role.micro_batch
    if role.token_budget:
        rows = max(1, min(rows, role.token_budget // max(1, model.tokens)))
    updating = {"activations": rows * model.training.peak}
    updating |= {"gathered blocks": gathered} if gathered else {}
    growing: dict[str, float] = {}
    least = gathered + model.training.peak
    if shared:
        resident |= _beside(config, model)
        growing, grown = _growing(config, model)
        growing |= {"gathered weights": model.weights} if gathered else {}
        least = max(least, grown + (model.weights if gathered else 0.0))
    return Need(
        role="learner",
        count=role.ranks,
        gpus=role.gpus,
        device=role.device,
        resident=resident,
        growing=growing,
        updating=updating,
        least=least,
    )


def optimiser_state(config: Config, model: ModelNeeds, ranks: int) -> dict[str, float]:
    """Bytes on each of so many ranks that share it: float32 masters of weights that compute in 16
    bits, gradients as they come and their float32 sums, AdamW's two moments, and the mean."""
    learns = 4.0 * model.trained
    narrow = learns - model.trained_32
    gradients = model.trained_bytes + narrow
    if ranks > 1 and not model.adapted:
        narrow = gradients = learns
    found = {
        "masters": narrow / ranks,
        "gradients": gradients / ranks,
        "moments": 2 * learns / ranks,
        "mean of weights": learns / ranks if config.learner.ema else 0.0,
    }
    return {name: size for name, size in found.items() if size}


def rewards(config: Config, frames: int) -> list[Need]:
    """The workers of each group of rewards; those of a reward that does not say what it needs count
    the others."""
    role, found = config.reward_workers, []
    for index, group in enumerate(config.reward_groups):
        prints = [config.rewards[place].footprint(frames) for place in group]
        known = [one for one in prints if one]
        activations = max((one.activations for one in known), default=0.0)
        weights = sum(one.weights for one in known)
        growing = {"activations": activations}
        # one of them at a time leaves main memory
        if role.offload:
            growing["scorer"] = max((one.weights for one in known), default=0.0)
        found.append(
            Need(
                role=f"reward{index or ''}",
                count=role.workers,
                gpus=role.gpus,
                device=role.device,
                resident={} if role.offload else {"weights": weights},
                growing=growing,
                updating={},
                least=sum(growing.values()),
            )
        )
    return found


def _beside(config: Config, model: ModelNeeds) -> dict[str, float]:
    found = {"decoder": model.decoder}
    if not (config.model.precomputed or config.model.offload_encoders):
        found["text encoders"] = model.encoders
    return found


def _growing(config: Config, model: ModelNeeds) -> tuple[dict[str, float], float]:
    """Bytes of growing and decoding with batches as configured, and the least that can be. Pixels
    are held three times over: float32, scaled, clamped."""
    batch = config.rollout.max_batch
    forward = max(batch * model.forward.peak, batch * model.evaluation.peak)
    one = max(model.forward.peak, model.evaluation.peak)
    pixels = 3 * 4.0 * model.pixels
    picture = model.decode.peak + pixels * (1 + model.evaluated)
    decode = picture * config.model.decoded_at_once
    turns = {"forward": forward, "decode": decode}
    if config.model.offload_encoders and not config.model.precomputed:
        turns["text encoders"] = model.encoders
        one = max(one, model.encoders)
    larger = max(turns, key=lambda turn: turns[turn])
    return {larger: turns[larger]}, max(one, picture)
