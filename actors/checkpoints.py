"""What a learner rank does for checkpoints: whole files from rank 0, or a shard from every rank,
written while training goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from branchgrpo.checkpoint.files import Named, Saved
from branchgrpo.checkpoint.readers import ALONE, Readers
from branchgrpo.checkpoint.store import Store
from branchgrpo.errors import kind_and_line
from branchgrpo.learner import saved_shards, saved_state, state
from branchgrpo.learner.policy import PolicyUpdate
from branchgrpo.learner.saved_shards import Content
from branchgrpo.service import CheckpointRequest, SavedCheckpoint

WRITING = timedelta(hours=2)
"""How long ranks wait for the slowest one's file. One that died ends it at once, and one that hangs
is noticed by the next update."""


class Checkpoints:
    """Of one rank; every rank makes the same calls."""

    def __init__(self, rank: int):
        self.rank, self.ranks = rank, 1
        self.shards = False  # every rank writes what it holds
        self.group: ProcessGroup | None = None  # of their own: training goes on beside
        self.stager: DefaultStager | None = None
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.writing: Future[Saved | None] | None = None

    def begin(self, ranks: int, shards: bool) -> None:
        """For a new policy, of which every rank holds shards, or all of it."""
        self.ranks, self.shards = ranks, shards
        if shards and self.group is None:
            group = dist.new_group(backend="gloo", timeout=WRITING)
            assert isinstance(group, ProcessGroup)  # every rank is in it
            self.group = group

    @property
    def readers(self) -> Readers:
        """Those who read a checkpoint together."""
        if not self.shards:
            return ALONE
        return Readers(self.rank, self.ranks, self._gathered)

    def _gathered(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.ranks
        dist.all_gather_object(found, value, self.group)
        return found

    def write(
        self,
        policy: PolicyUpdate,
        request: CheckpointRequest,
        *,
        keep: int,
        own: Mapping[str, Any],
        small: Mapping[str, Named],
    ) -> SavedCheckpoint:
        """Write a checkpoint; in shards, unless the request says otherwise, begin to: what is
        written is a copy. own: of state.json, beside the policy's progress. small: tensors by file,
        which rank 0 writes. Raises StaleFence."""
        content = Content(
            iteration=request.iteration,
            fence=request.fence,
            state=state.progress(policy) | dict(own),
            tensors={f"{file}.safetensors": named for file, named in small.items()},
        )
        if not self.shards:
            return self._whole(policy, request.where, keep, content)
        if self.writing:
            wait([self.writing])
        copy = self._copied(state.in_shards(policy), pinned=policy.model.device.type == "cuda")
        store = Store(request.where, keep)
        self.writing = self.thread.submit(saved_shards.save, store, content, copy, self.group)
        return self.written(wait=request.wait)

    def _copied(self, tensors: Mapping[str, Tensor], pinned: bool) -> dict[str, Tensor]:
        """In main memory, which is used again for the next checkpoint."""
        if self.stager is None:
            # pinned, shared with other processes, by a thread, without waiting for each tensor
            self.stager = DefaultStager(StagingOptions(pinned, False, False, pinned))
        copy = self.stager.stage(dict(tensors))
        assert isinstance(copy, dict)
        return copy

    def _whole(
        self, policy: PolicyUpdate, where: str, keep: int, content: Content
    ) -> SavedCheckpoint:
        tensors = state.in_whole(policy, keep=self.rank == 0)
        if self.rank:
            return SavedCheckpoint()
        files: dict[str, Named] = {f"{file}.safetensors": named for file, named in tensors.items()}
        store = Store(where, keep)
        return _outcome(
            lambda: store.save(
                content.iteration, content.fence, content.state, files | dict(content.tensors)
            )
        )

    def written(self, wait: bool) -> SavedCheckpoint:
        """What became of the checkpoint that was begun last. Raises StaleFence."""
        writing = self.writing
        if writing is None:
            return SavedCheckpoint()
        if not (wait or writing.done()):
            return SavedCheckpoint(pending=True)
        self.writing = None
        return _outcome(writing.result)

    def settle(self) -> None:
        """Wait for what is being written, whatever becomes of it, and give back the copy's
        memory."""
        if self.writing:
            wait([self.writing])
            self.writing = None
        if self.stager:
            self.stager.close()
            self.stager = None

    def take(self, saved: Saved, policy: PolicyUpdate) -> dict[str, Any]:
        """Set a new policy to a checkpoint, see learner.saved_state."""
        return saved_state.take(saved, policy, self.group if self.shards else None)


def _outcome(save: Callable[[], Saved | None]) -> SavedCheckpoint:
    try:
        saved = save()
    except OSError as error:
        return SavedCheckpoint(failed=kind_and_line(error))
    return SavedCheckpoint(path=saved.path if saved else "")
