"""A learner rank: fuses rewards, assigns credit, prunes, takes its shard, trains and publishes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.calls import LearnerCalls
from actors.checkpoints import Checkpoints
from actors.collectives import begin_alike, form_group, largest, same_on_all, summed
from actors.devices import prepare
from actors.meeting import free_address
from actors.rollout import fingerprint
from branchgrpo.algo import credit
from branchgrpo.algo.tree import assemble
from branchgrpo.config.schema import Config
from branchgrpo.errors import Diverged, GateError, UserError
from branchgrpo.learner import norm_reference
from branchgrpo.learner.batches import MicroBatches
from branchgrpo.learner.fsdp import gathered, let_go, shard_weights
from branchgrpo.learner.payloads import Fetch, PayloadStore
from branchgrpo.learner.policy import PolicyUpdate, Tally
from branchgrpo.learner.saved_state import saved_reference, to_go_on_from
from branchgrpo.learner.state import NORM
from branchgrpo.learner.statistics import step_stats
from branchgrpo.learner.texts import PromptTexts
from branchgrpo.learner.training import Task, training_of
from branchgrpo.models import weights as wire
from branchgrpo.models.base import Part
from branchgrpo.service import (
    CheckpointRequest,
    PublishedWeights,
    RestoredState,
    SavedCheckpoint,
    UpdateRequest,
    WeightSpec,
)
from branchgrpo.types import (
    F32,
    StepStats,
    TreeHeader,
)


class Learner(LearnerCalls):
    """Plain class; the cluster makes a rank group of actors of it. With one rank it needs no
    process group."""

    parts: tuple[Part, ...] = ("denoiser",)  # what of the model it needs

    def __init__(self, config: Config, rank: int, fetch: Fetch):
        self.config = config
        self.rank = rank
        self.ranks = 1
        self.fetch = fetch
        self.version = 0
        self.checkpoints = Checkpoints(rank)

    def configure(self, config: Config) -> None:
        """Begin again with the untrained model, for this config; ranks and resources stay as they
        were."""
        prepare(config.learner)
        torch.manual_seed(config.run.seed)
        self.config = config
        self.checkpoints.settle()
        for old in ("model", "policy", "training"):  # go before the new ones come
            vars(self).pop(old, None)
        self.model = config.model.build(config.learner.device, self.parts)
        self.kinds = {name: value.dtype for name, value in self.model.trainable().items()}
        if self.sharded and not self.model.adapted and len(set(self.kinds.values())) > 1:
            raise UserError(
                "learner.parallel: fsdp computes with all weights in model.dtype, but this "
                "family keeps some in float32: expected ddp, LoRA, or float32"
            )
        if config.loss.needs_base:
            self.model.freeze_base()
        if self.sharded:
            options = config.learner
            sharing, reduce = options.sharing(self.ranks), getattr(torch, options.reduce)
            shard_weights(self.model, self.ranks, sharing, reduce)
        else:
            begin_alike(self.ranks, self.model.trainable().values())
        self.checkpoints.begin(self.ranks, self.sharded and not self.model.adapted)
        self.version = self.skips = 0
        self.policy = PolicyUpdate(config, self.model, self.ranks)
        self.training = training_of(config, self.policy)
        self.begins = True  # the next update is the run's first
        self.reference: norm_reference.NormReference | None = None

    def __repr__(self) -> str:
        return f"learner-{self.rank}"

    @property
    def sharded(self) -> bool:
        """Weights are spread over the ranks."""
        return self.ranks > 1 and self.config.learner.parallel == "fsdp"

    def ping(self) -> None:
        """Is it alive?"""

    def rendezvous(self, host: str) -> str:
        """A free address of this host, for rank 0 to be met at. host: its IPv4 or IPv6 address,
        which the others reach."""
        return free_address(host)

    def join(self, ranks: int, address: str) -> None:
        """Form the process group of so many ranks, if there are several; load the model."""
        self.ranks = ranks
        if ranks > 1:
            form_group(self.config.learner, self.rank, ranks, address)
        self.configure(self.config)

    def update(self, request: UpdateRequest) -> StepStats:
        """One iteration's training. Raises GateError when a start-up gate fails, RuntimeError after
        too many skips."""
        plan, trees = request.plan, self._trees(request)
        device = self.model.device
        credits = self.config.credit.assign(plan, trees, request.iteration, request.scores)
        same_on_all(self.ranks, "credit", credit.digest(credits))
        task = Task(plan=plan, iteration=request.iteration, trees=trees, credits=credits)
        shards = [ranks[self.rank] for ranks in self.training.shards(task, self.ranks)]
        pin = device.type == "cuda"
        store = PayloadStore(self.fetch, plan, trees, request.segments, shards=shards, pin=pin)
        texts = PromptTexts(self.fetch, request.conditioning, trees, shards, model=self.model)
        size = self._size(texts)
        steps = [self.training.batches(task, one, store, texts, size=size) for one in shards]
        if self.begins and not (plan.frozen and all(plan.frozen)):
            self.reference = self._drawn(request, size)
        tally = Tally()
        first = self.version == 0 and self.config.gates.enabled
        gated = first and self.training.gated
        on_policy = self._on_policy_gate(task, steps[0], tally) if gated else float("nan")
        self.training.begin(task, steps, tally)
        norms = [self.training.step(task, batches, tally) for batches in steps if len(batches)]
        self.training.end(task)
        self._count_skips(norms)
        self.version += 1
        if first and not self.sharded:
            weights = wire.digest_of(self.model.trainable())
            same_on_all(self.ranks, "parameters after the first update", weights)
        return step_stats(
            plan,
            credits,
            tally=tally.reduced(lambda sums: summed(self.ranks, sums, device)),
            norms=norms,
            version=self.version,
            learning_rate=self.policy.learning_rate,
            on_policy=on_policy,
            first_ratio=largest(self.ranks, self.policy.first_ratio or 0.0, device),
            fetched_bytes=store.bytes + texts.bytes,
            velocity_norm=self._velocity_norm(size),
        )

    def _drawn(self, request: UpdateRequest, size: int) -> norm_reference.NormReference:
        """What ‖v‖ is measured by from now on: the same on every rank."""
        return norm_reference.NormReference.drawn(
            self.model,
            request.plan,
            self.fetch(request.conditioning[: norm_reference.PROMPTS]),
            portions=self.policy.portions,
            size=size,
            seed=self.config.run.seed,
        )

    def _velocity_norm(self, size: int) -> float | None:
        """‖v‖ ÷ what it was when the run began: after the first update and some later ones; None
        after others, and where an older checkpoint does not tell. Every rank must call it."""
        if self.reference is None:
            return None
        due, self.begins = self.begins or self.version % norm_reference.EVERY == 0, False
        if not due:
            return None
        found = self.reference.ratio(self.model, self.policy.portions, size)
        if self.sharded:  # no backward follows, which would take back what a forward has gathered
            let_go(self.model)
        return found

    def _trees(self, request: UpdateRequest) -> list[TreeHeader]:
        """The trees that are trained on. Raises RuntimeError for those of an over-stale policy."""
        headers = [header for header, _ in request.segments]
        rewards = self.config.credit.leaf_rewards(request.scores)
        trees = assemble(request.plan, headers, rewards)
        grown_with = trees[0].policy_version
        if not 0 <= self.version - grown_with <= self.config.async_.max_staleness:
            raise RuntimeError(
                f"{self!r} has weights v{self.version}: trees were grown with weights v{grown_with}"
            )
        return trees

    def _size(self, texts: PromptTexts) -> int:
        """Rows of a forward at most."""
        options = self.config.learner
        if not options.token_budget:
            return options.micro_batch
        # ranks whose forwards are collectives must make as many
        tokens = int(largest(self.ranks, texts.tokens(), self.model.device))
        return min(options.micro_batch, max(1, options.token_budget // tokens))

    def publish(self, weights: str = "policy") -> list[Any]:
        """[PublishedWeights, WeightUpdate, chunk, …] of the present weights, of their exponential
        mean (`ema`), or of the loss' own set (`second`), as many chunks as `specification` says.
        Every rank must call it; all but the first return nothing but None.

        Chunks are views of what `_whole` gives: they are valid until the next update."""
        tensors = self._whole(weights)
        if self.rank:
            return [None] * (2 + self.specification().chunks)
        update, chunks = wire.pack_weights(
            self.version, tensors, self.config.learner.publish_chunk_mb << 20
        )
        published = PublishedWeights(version=update.version, digest=update.digest)
        return [published, update, *chunks]

    def _whole(self, weights: str) -> dict[str, torch.Tensor]:
        """The trained weights, or others by `publish`, in main memory and in the dtypes of rollout
        workers; {} but on rank 0. Those that lie there already, whole and in that dtype,
        are not copied."""
        return dict(gathered(self.policy.named(weights), self.rank == 0, self.kinds))

    def specification(self) -> WeightSpec:
        """How `publish` sends the weights."""
        trained = self.model.trainable()
        sizes = [value.numel() * self.kinds[name].itemsize for name, value in trained.items()]
        plan = wire.plan_chunks(sizes, self.config.learner.publish_chunk_mb << 20)
        return WeightSpec(bytes=sum(sizes), chunks=plan[-1] + 1)

    def checkpoint(self, request: CheckpointRequest) -> SavedCheckpoint:
        """Write what training has reached, with the driver's own state; sharded weights in shards,
        and while training goes on, if that is wanted. Every rank must call it; rank 0 tells. Raises
        StaleFence when another run has taken over."""
        own = {"version": self.version, "skips": self.skips, "driver": dict(request.driver)}
        small = {NORM: self.reference.tensors()} if self.reference else {}
        keep = self.config.checkpoint.keep
        return self.checkpoints.write(self.policy, request, keep=keep, own=own, small=small)

    def checkpointed(self, wait: bool) -> SavedCheckpoint:
        """What became of a checkpoint that was pending; as of `checkpoint`."""
        return self.checkpoints.written(wait)

    def restore(self, where: str, origin: str = "") -> RestoredState:
        """Go back to the newest valid checkpoint at `where`, or to the beginning when there is
        none: the checkpoint `origin`, or the untrained model. Every rank must call it. Raises
        UserError for a checkpoint that does not fit the policy, which then stays as it begins."""
        self.configure(self.config)
        keep, readers = self.config.checkpoint.keep, self.checkpoints.readers
        saved, own, damaged = to_go_on_from(where, keep, origin, readers)
        if saved is None:
            return RestoredState(driver=None, damaged=damaged)
        reference = saved_reference(saved, self.model) if own else None
        state = self.checkpoints.take(saved, self.policy)
        self.begins, self.reference = not own, reference
        self.version, self.skips = int(state["version"]), int(state["skips"])
        return RestoredState(driver=dict(state["driver"]), damaged=damaged)

    def fingerprint(self) -> F32:
        """Velocity at a fixed input (`actors.rollout.fingerprint`) of what trees are grown with."""
        if self.config.grown_with == "second" and self.policy.second is not None:
            with self.policy.second.shown():
                return fingerprint(self.model)
        return fingerprint(self.model)

    def export(self, folder: Path) -> None:
        """Write the weights that are evaluated, in the form that run.export names. Every rank must
        call it."""
        tensors = self._whole(self.config.evaluation.weights)
        if self.rank:
            return
        # whole and unwrapped, whatever the ranks hold
        model = self.config.model.build("cpu", ("denoiser",))
        model.load(tensors)
        model.save(
            folder, self.config.model.folder(), self.config.run.export, self.config.sampling.shift
        )

    def _on_policy_gate(self, task: Task, batches: MicroBatches, tally: Tally) -> float:
        """Before the first update the ratio of every edge must be 1, or rollout and learner
        disagree."""
        deviation = self.training.deviation(task, batches, tally)
        found = largest(self.ranks, deviation, self.model.device)
        bound = self.config.gates.on_policy_tolerance
        if not found <= bound:
            raise GateError(
                f"gate on-policy ratio: expected |ratio − 1| ≤ {bound:g} before the first "
                f"update, got {found:.3g}"
            )
        return found

    def _count_skips(self, norms: list[float]) -> None:
        for norm in norms:
            self.skips = 0 if np.isfinite(norm) else self.skips + 1
            if self.skips >= self.config.learner.max_skips:
                raise Diverged(
                    f"{self!r}: {self.skips} optimiser steps in a row had a gradient that "
                    "is not finite"
                )
