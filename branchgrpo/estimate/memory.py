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
    least: float  # bytes of both turns at most, with batches of one where they can be halved
    resting: float = 0.0  # bytes in pinned main memory that come to the card for a turn

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
    growing, least = _growing(config, model, role.device)
    return Need(
        role="rollout",
        count=count,
        gpus=role.gpus,
        device=role.device,
        resident={"weights": model.weights, **_beside(config, model, role.device)},
        growing=growing,
        updating={},
        least=least,
        resting=model.encoders if _offloads(config, role.device) else 0.0,
    )


def learner(config: Config, model: ModelNeeds, shared: bool) -> Need:
    """A learner rank: weights, what AdamW keeps of those that learn, and a micro-batch. shared: it
    grows trees as well, with whole weights."""
    role = config.learner
    ranks = role.sharing(role.ranks)
    full = not model.adapted
    resident, gathered = {"weights": model.weights}, 0.0
    if ranks > 1:
        # those that learn are the masters; with all weights, others are in float32 as well
        frozen = model.weights - model.trained_bytes
        resident["weights"] = (4.0 * (model.parameters - model.trained) if full else frozen) / ranks
        gathered = _gathered(config, model)
    state = optimiser_state(config, model, ranks)
    gradients = state.pop("gradients", 0.0)  # of an update: trees grow without
    resident |= state
    if config.loss.needs_base and full:
        resident["frozen base"] = model.weights / ranks
    rows = role.micro_batch
    if role.token_budget:
        rows = max(1, min(rows, role.token_budget // max(1, model.tokens)))
    updating = {"activations": rows * model.training.peak, "gradients": gradients}
    updating |= {"gathered blocks": gathered} if gathered else {}
    growing: dict[str, float] = {}
    # ranks whose forwards are collectives cannot halve them
    least = gradients + gathered + model.training.peak * (rows if ranks > 1 else 1)
    if shared:
        resident |= _beside(config, model, role.device)
        growing, grown = _growing(config, model, role.device)
        beside = {"gathered weights": model.weights if gathered else 0.0}
        if (
            config.evaluation.weights == "ema" or config.grown_with != "policy"
        ):  # those without masters apart are kept meanwhile
            beside["weights but for their mean"] = (
                4.0 * model.trained / ranks if ranks > 1 else model.trained_32
            )
        growing |= {name: amount for name, amount in beside.items() if amount}
        least = max(least, grown + sum(beside.values()))
    return Need(
        role="learner",
        count=role.ranks,
        gpus=role.gpus,
        device=role.device,
        resident=resident,
        growing=growing,
        updating=updating,
        least=least,
        resting=model.encoders if shared and _offloads(config, role.device) else 0.0,
    )


def _gathered(config: Config, model: ModelNeeds) -> float:
    """Bytes that fsdp makes whole for a while on each rank: weights, in the dtype of forwards, and
    with all weights a block's gradients, in that dtype and in the one that is scattered."""
    each = model.weights / model.parameters
    found = each * (model.largest_block * BLOCKS_AT_ONCE + model.outside_blocks)
    if not model.adapted:
        sent = 4.0 if config.learner.reduce == "float32" else 2.0
        found += (each + sent) * model.largest_block
        if config.loss.needs_base:  # the frozen base has no backward after which they would go
            found += each * model.outside_blocks
    return found


def optimiser_state(config: Config, model: ModelNeeds, ranks: int) -> dict[str, float]:
    """Bytes on each of so many ranks that share it: float32 masters of weights that compute in 16
    bits, gradients as they come and, apart from them, their float32 sums, AdamW's two moments, the
    mean, and the loss' second set. Shards are float32 themselves, and gradients are summed where
    they come."""
    learns = 4.0 * model.trained
    masters, gradients = learns - model.trained_32, model.trained_bytes + learns
    if ranks > 1:
        masters = gradients = learns
    found = {
        "masters": masters / ranks,
        "gradients": gradients / ranks,
        "moments": 2 * learns / ranks,
        "mean of weights": learns / ranks if config.learner.ema else 0.0,
        "second weights": learns / ranks if config.loss.second != "none" else 0.0,
    }
    return {name: size for name, size in found.items() if size}


def rewards(config: Config, frames: int) -> list[Need]:
    """The workers of each group of rewards; those of a reward that does not say what it needs count
    the others."""
    role, found = config.reward_workers, []
    for index, group in enumerate(config.reward_groups):
        prints = [config.all_rewards[place].footprint(frames) for place in group]
        known = [one for one in prints if one]
        activations = max((one.activations for one in known), default=0.0)
        weights = sum(one.weights for one in known)
        growing = {"activations": activations}
        offload = role.offload and role.device != "cpu"
        if offload:  # one of them at a time leaves main memory
            growing["scorer"] = max((one.weights for one in known), default=0.0)
        found.append(
            Need(
                role=f"reward{index or ''}",
                count=role.workers,
                gpus=role.gpus,
                device=role.device,
                resident={} if offload else {"weights": weights},
                growing=growing,
                updating={},
                least=sum(growing.values()),
                resting=weights if offload else 0.0,
            )
        )
    return found


def _offloads(config: Config, device: str) -> bool:
    """Text encoders are there, and not always on the card."""
    return config.model.offload_encoders and not config.model.precomputed and device != "cpu"


def _beside(config: Config, model: ModelNeeds, device: str) -> dict[str, float]:
    found = {"decoder": model.decoder}
    if not (config.model.precomputed or _offloads(config, device)):
        found["text encoders"] = model.encoders
    return found


def _growing(config: Config, model: ModelNeeds, device: str) -> tuple[dict[str, float], float]:
    """Bytes of growing and decoding with batches as configured, and the least that can be. Pixels
    are held three times over: float32, scaled, clamped."""
    batch = config.rollout.max_batch
    forward = max(batch * model.forward.peak, batch * model.evaluation.peak)
    one = max(model.forward.peak, model.evaluation.peak)
    pixels = 3 * 4.0 * model.pixels
    picture = max(model.decode.peak, model.decoding) + pixels * (1 + model.evaluated)
    decode = picture * config.model.decoded_at_once
    turns = {"forward": forward, "decode": decode}
    if _offloads(config, device):
        turns["text encoders"] = model.encoders
        one = max(one, model.encoders)
    larger = max(turns, key=lambda turn: turns[turn])
    return {larger: turns[larger]}, max(one, picture)
