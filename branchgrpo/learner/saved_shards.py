"""Checkpoints in shards by torch.distributed.checkpoint: its planners say which rank writes what,
and which rows fit whom; the files, their digests and the commit are the store's."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from branchgrpo.checkpoint.files import Named, Saved, encode_state, encode_tensors
from branchgrpo.checkpoint.manifest import STATE
from branchgrpo.checkpoint.shards import Rows, Shards, Written, file_of, read_rows, write_rank
from branchgrpo.checkpoint.store import Draft, Store
from branchgrpo.errors import StaleFence


@dataclass(frozen=True)
class Content:
    """What is saved beside the shards, by the rank that coordinates."""

    iteration: int
    fence: int
    state: Mapping[str, Any]
    tensors: Mapping[str, Named]  # file name → named tensors, small ones


def save(
    store: Store, content: Content, tensors: Mapping[str, Tensor], group: ProcessGroup | None
) -> Saved | None:
    """Write a checkpoint, of which every rank of the group writes its shards; None: this process is
    all there is. Every rank must call it; rank 0 returns what was saved, and alone needs the
    content.

    tensors: FILE/NAME → a tensor in main memory, or a DTensor of which there is a shard. Raises as
    Store.save, on every rank, whichever it happened to.
    """
    writer = Writer(store, content)
    try:
        with _together(group):
            state_dict_saver.save(
                dict(tensors), storage_writer=writer, process_group=group, no_dist=group is None
            )
    except OSError:
        store.require_newest(content.fence)  # a newer fence sweeps a zombie's draft away
        raise
    finally:
        writer.close()
    return writer.saved


def load(shards: Shards, tensors: Mapping[str, Tensor], group: ProcessGroup | None) -> None:
    """Read tensors in place: FILE/NAME → a tensor, or a DTensor whose shard this rank has. Every
    rank of the group must call it. Raises Damaged when the files cannot be read."""
    reader = Reader(shards)
    with _together(group):
        state_dict_loader.load(
            dict(tensors), storage_reader=reader, process_group=group, no_dist=group is None
        )


class Writer(StorageWriter):
    """Each rank's shards go to a file of a draft that rank 0 makes, and commits at the end."""

    def __init__(self, store: Store, content: Content):
        self.store, self.content = store, content
        self.draft: Draft | None = None  # rank 0's
        self.saved: Saved | None = None

    def reset(self, checkpoint_id: Any = None) -> None:
        """Each checkpoint has a writer of its own."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Begin the draft."""
        if is_coordinator:
            self.draft = self.store.begin(self.content.iteration, self.content.fence)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Tell every rank where to write."""
        assert self.draft
        text, ranks = self.draft.text, len(plans)
        return [
            replace(plan, storage_data=(text, file_of(rank, ranks)))
            for rank, plan in enumerate(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's file, unless there is nothing for it."""
        text, file = plan.storage_data
        results = []
        if plan.items:
            pieces = [_piece(item, planner) for item in plan.items]
            written = write_rank(self.store.part(text), file, pieces)
            results = [
                WriteResult(
                    index=plan.items[0].index,
                    size_in_bytes=written.bytes,
                    storage_data=written,
                )
            ]
        return _done(results)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit what all have written."""
        assert self.draft
        self.draft.write(STATE, encode_state(self.content.state))
        for file, named in self.content.tensors.items():
            self.draft.write(file, encode_tensors(file, named))
        for result in (one for rank in results for one in rank):
            written: Written = result.storage_data
            self.draft.files[written.file] = (written.sha256, written.bytes)
        self.saved = self.store.commit(self.draft)

    def close(self) -> None:
        """Remove a draft that came to nothing."""
        if self.draft and not self.saved:
            self.store.abandon(self.draft)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """It is never found by an id."""
        return False


class Reader(StorageReader):
    """Reads rows out of ranks' files, whoever wrote them."""

    def __init__(self, shards: Shards):
        self.shards = shards

    def reset(self, checkpoint_id: Any = None) -> None:
        """Each checkpoint has a reader of its own."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What there is."""
        return Metadata(
            state_dict_metadata={
                name: TensorStorageMetadata(
                    properties=TensorProperties(dtype=cut.dtype),
                    size=torch.Size(cut.shape),
                    chunks=[
                        ChunkStorageMetadata(offsets=_offsets(rows), sizes=torch.Size(rows.shape))
                        for rows in cut.parts
                        if rows.count  # a rank may have had none
                    ],
                )
                for name, cut in self.shards.tensors.items()
            }
        )

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing is to be prepared."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read this rank's items, file by file."""
        items = [(self._rows(item), item) for item in plan.items]
        for file in sorted({rows.file for rows, _ in items}):
            with self.shards.opened(file) as source:
                for rows, item in items:
                    if rows.file == file:
                        target = planner.resolve_tensor(item).detach()
                        skip = item.storage_offsets[0] if rows.shape else 0
                        read_rows(source, rows, target, skip)
                        planner.commit_tensor(item, target)
        return _done(None)

    def _rows(self, item: ReadItem) -> Rows:
        """Those that an item is read from."""
        index = item.storage_index
        parts = self.shards.tensors[index.fqn].parts
        return next(rows for rows in parts if _offsets(rows) == index.offset and rows.count)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """It is never found by an id."""
        return False


def _piece(item: WriteItem, planner: SavePlanner) -> tuple[str, Tensor, int, tuple[int, ...]]:
    """(FILE/NAME, rows, the first of them, whole shape)."""
    assert item.tensor_data
    chunk, shape = item.tensor_data.chunk, tuple(item.tensor_data.size)
    assert not any(chunk.offsets[1:]) and tuple(chunk.sizes[1:]) == shape[1:]
    rows = planner.resolve_data(item)
    assert isinstance(rows, Tensor)
    return item.index.fqn, rows, chunk.offsets[0] if shape else 0, shape


def _offsets(rows: Rows) -> torch.Size:
    """Where they begin, as torch has it."""
    return torch.Size([rows.first, *[0] * (len(rows.shape) - 1)] if rows.shape else [])


def _done(value: Any) -> Future[Any]:
    future = Future[Any]()
    future.set_result(value)
    return future


def _cause(error: CheckpointException) -> BaseException:
    """What happened to a rank: of several errors a stale fence, then one of the storage."""
    causes = [cause for cause, _ in error.failures.values()]
    kinds = (StaleFence, OSError, BaseException)
    return next(cause for kind in kinds for cause in causes if isinstance(cause, kind))


@contextmanager
def _together(group: ProcessGroup | None) -> Iterator[None]:
    """What happened to any rank is raised as it was. Torch warns of a process without a group; here
    that is meant."""
    with warnings.catch_warnings():
        if group is None:
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        try:
            yield
        except CheckpointException as error:
            raise _cause(error) from error
