"""Learner ranks that hold shards write and read them: on other numbers of ranks, while training
goes on, and when a rank or a file is gone."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from support.small_batch import batch, config, two_ranks

from actors.learner import Learner
from branchgrpo.checkpoint.shards import Shards, file_of, whole_tensors
from branchgrpo.checkpoint.store import Store, open_saved
from branchgrpo.errors import StaleFence, UserError
from branchgrpo.learner import saved_shards
from branchgrpo.learner.fsdp import full
from branchgrpo.learner.state import captured, progress
from branchgrpo.service import CheckpointRequest, RestoredState, SavedCheckpoint

pytestmark = pytest.mark.networks

SHARDED = {"learner.parallel": "fsdp", "learner.ema": "0.5", "async.max_staleness": "1"}


def at(where: Path | str, iteration: int, wait: bool = True, fence: int = 1) -> CheckpointRequest:
    driver = {"iteration": iteration}
    return CheckpointRequest(
        where=str(where), iteration=iteration, fence=fence, driver=driver, wait=wait
    )


def everything(learner: Learner) -> dict[str, Any]:
    """All that must survive, whole."""
    tensors = {
        f"{file}/{name}": full(value.detach()).clone()
        for file, named in captured(learner.policy).items()
        for name, value in named.items()
    }
    return {"tensors": tensors, "progress": progress(learner.policy), "version": learner.version}


def joined(rank: int, ranks: int, address: str) -> Learner:
    learner = Learner(config(ranks, SHARDED), rank, list)
    learner.join(ranks, address)
    return learner


def ended(rank: int, folder: str, found: Any) -> None:
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


def four(rank: int, address: str, folder: str) -> None:
    """Train, save, train on while that is written, and save again."""
    arguments = pickle.loads((Path(folder) / "batch.pickle").read_bytes())
    learner = joined(rank, 4, address)
    learner.update(*arguments)
    first = everything(learner)
    assert learner.checkpoint(at(f"local://{folder}/url", 1)).pending is False
    begun = learner.checkpoint(at(Path(folder) / "run", 1, wait=False))
    learner.policy.masters[0].data.add_(1.0)  # as training would: what is written is a copy
    done = learner.checkpointed(wait=True)
    assert learner.checkpointed(wait=True) == SavedCheckpoint()  # told once
    learner.update(*arguments)
    second = everything(learner)
    learner.checkpoint(at(Path(folder) / "run", 2, wait=False))
    overtaken = learner.checkpoint(at(Path(folder) / "run", 3))  # waits for the one before
    ended(rank, folder, {"first": first, "second": second, "told": [begun, done, overtaken]})


def again(rank: int, address: str, folder: str) -> None:
    """Go on from it, and save that."""
    ranks = int((Path(folder) / "ranks").read_text())
    learner = joined(rank, ranks, address)
    restored = learner.restore(str(Path(folder) / "run"))
    found = everything(learner) | {"restored": restored}
    learner.checkpoint(at(Path(folder) / "run", 10 + ranks, fence=1))
    ended(rank, folder, found)


def from_whole_files(rank: int, address: str, folder: str) -> None:
    """Go on from what one rank wrote."""
    learner = joined(rank, 2, address)
    for _ in range(5 * rank):  # ranks have read other files before: orders of names differ
        safetensors.torch.load(safetensors.torch.save({"w": torch.zeros(1)}))
    restored = learner.restore(str(Path(folder) / "whole"))
    ended(rank, folder, everything(learner) | {"restored": restored})


def passing(rank: int, address: str, folder: str) -> None:
    """Restore from each of the damaged folders."""
    learner = joined(rank, 2, address)
    found: dict[str, Any] = {}
    for case in sorted(path.name for path in (Path(folder) / "cases").iterdir()):
        try:
            found[case] = learner.restore(str(Path(folder) / "cases" / case))
        except UserError as error:
            found[case] = str(error)
    ended(rank, folder, found)


def dying(rank: int, address: str, folder: str) -> None:
    """Rank 1 dies with half a file written."""
    learner = joined(rank, 3, address)
    learner.checkpoint(at(Path(folder) / "run", 1))
    if rank == 1:
        written = saved_shards.write_rank

        def half(place: Any, file: str, pieces: Any) -> Any:
            written(place, file, list(pieces)[:2])
            os._exit(0)

        saved_shards.write_rank = half
    begun = learner.checkpoint(at(Path(folder) / "run", 2, wait=False))
    try:
        told: Any = learner.checkpointed(wait=True)
    except RuntimeError as error:
        told = str(error)
    torch.save([begun, told], Path(folder) / f"rank{rank}.pt")
    os._exit(0)  # its group is unusable


def superseded(rank: int, address: str, folder: str) -> None:
    """Another driver has claimed a fence, before and while a checkpoint is written."""
    learner = joined(rank, 2, address)
    where = Path(folder) / "run"
    store = Store(where)
    if rank == 0:
        store.claim()
        store.claim()
    dist.barrier()
    commit, told = Store.commit, []

    def late(*args: Any) -> Any:
        store.claim()
        return commit(*args)

    for fence in (1, 2):
        if fence == 2:
            Store.commit = late  # type: ignore[method-assign]
        try:
            told.append(learner.checkpoint(at(where, 1, fence=fence)))
        except StaleFence as error:
            told.append(str(error))
    ended(rank, folder, told)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    (folder / "batch.pickle").write_bytes(pickle.dumps(batch()))
    two_ranks(four, folder, 4)
    return folder


@pytest.fixture(scope="module")
def wrote(run: Path) -> list[dict[str, Any]]:
    return [torch.load(run / f"rank{rank}.pt", weights_only=False) for rank in range(4)]


def same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found["tensors"].keys() == wanted["tensors"].keys()
    for name, value in wanted["tensors"].items():
        assert torch.equal(found["tensors"][name], value), name
    assert found["progress"] == wanted["progress"] and found["version"] == wanted["version"]


def test_every_rank_writes_its_share_while_training_goes_on(
    run: Path, wrote: list[dict[str, Any]]
) -> None:
    begun, done, overtaken = wrote[0]["told"]
    assert begun.pending or begun.path
    assert (done.path or begun.path) and overtaken.path
    assert not any(one["told"][2].path for one in wrote[1:])  # rank 0 tells
    store = Store(run / "run")
    assert store.iterations() == [2, 3]
    saved = store.newest()
    assert saved and Shards(saved).files == [file_of(rank, 4) for rank in range(4)]
    sizes = [saved.files[file_of(rank, 4)][1] for rank in range(4)]
    assert max(sizes) < 1.2 * min(sizes)


def test_what_was_saved_is_what_was_there_when_it_was_asked_for(
    run: Path, wrote: list[dict[str, Any]]
) -> None:
    saved = Store(f"local://{run}/url").newest()
    assert saved
    for file in ("weights", "ema", "exp_avg", "exp_avg_sq"):
        found = whole_tensors(saved, file)
        assert found and all(
            torch.equal(value, wrote[0]["first"]["tensors"][f"{file}/{name}"])
            for name, value in found.items()
        )


@pytest.mark.parametrize("ranks", [(2, 3), (1, 4)])
def test_other_numbers_of_ranks_go_on(
    run: Path, wrote: list[dict[str, Any]], ranks: tuple[int, int], tmp_path: Path
) -> None:
    """4 → 2 → 3 and 4 → 1 → 4, equal to the bit."""
    shutil.copytree(run / "run", tmp_path / "run")
    wanted = RestoredState(driver={"iteration": 3}, damaged=())
    for count in ranks:
        if count == 1:
            learner = Learner(config(1, {"learner.ema": "0.5"}), 0, list)
            restored = learner.restore(str(tmp_path / "run"))
            found = [everything(learner) | {"restored": restored}]
            learner.checkpoint(at(tmp_path / "run", 11))
        else:
            (tmp_path / "ranks").write_text(str(count))
            found = two_ranks(again, tmp_path, count)
        for one in found:
            assert one["restored"] == wanted
            same(one, wrote[0]["second"])
        wanted = RestoredState(driver={"iteration": 10 + count}, damaged=())


def test_ranks_with_shards_go_on_from_whole_files(run: Path, tmp_path: Path) -> None:
    """The moments too: each of its own parameter, in whatever order a file is read."""
    learner = Learner(config(1, {"learner.ema": "0.5"}), 0, list)
    learner.join(1, "")
    learner.update(*pickle.loads((run / "batch.pickle").read_bytes()))
    wanted = everything(learner)
    assert learner.checkpoint(at(tmp_path / "whole", 7)).path
    for found in two_ranks(from_whole_files, tmp_path):
        assert found["restored"] == RestoredState(driver={"iteration": 7}, damaged=())
        same(found, wanted)


def test_a_damaged_shard_leads_to_the_checkpoint_before(run: Path, tmp_path: Path) -> None:
    def missing(file: Path) -> None:
        file.unlink()

    def truncated(file: Path) -> None:
        file.write_bytes(file.read_bytes()[:-1])

    def flipped(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)

    for damage in (missing, truncated, flipped):
        where = tmp_path / "cases" / damage.__name__
        shutil.copytree(run / "run", where)
        damage(where / Store(where).all()[-1] / file_of(3, 4))
    both = tmp_path / "cases" / "all"
    shutil.copytree(run / "run", both)
    for name in Store(both).all():
        flipped(both / name / file_of(0, 4))
    for found in two_ranks(passing, tmp_path):
        for damage in (missing, truncated, flipped):
            restored = found[damage.__name__]
            assert restored.driver == {"iteration": 2}
            (line,) = restored.damaged
            assert file_of(3, 4) in line
        assert found["all"].startswith("checkpoints: expected a valid one in")


def test_another_model_is_refused_in_one_line(run: Path) -> None:
    saved = open_saved(Store(run / "run").newest().path)  # type: ignore[union-attr]
    other = config(1, {"model.lora_rank": "4"})
    learner = Learner(other, 0, list)
    with pytest.raises(UserError, match=r"expected weights of [0-9]+ parameters, got") as caught:
        learner.restore(str(run / "run"))
    assert saved.path in str(caught.value) and "\n" not in str(caught.value)


def test_a_rank_that_dies_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    (tmp_path / "rank1.pt").write_bytes(b"")
    torch.save(None, tmp_path / "rank1.pt")  # it leaves nothing
    first, _, third = two_ranks(dying, tmp_path, 3)
    for begun, told in (first, third):
        assert begun.pending and isinstance(told, str)
    store = Store(tmp_path / "run")
    assert store.iterations() == [1] and store.newest()
    fence = store.claim()  # the next driver's first save takes the rest away
    learner = Learner(config(1, {"learner.ema": "0.5"}), 0, list)
    assert learner.restore(str(tmp_path / "run")).driver == {"iteration": 1}
    learner.checkpoint(at(tmp_path / "run", 2, fence=fence))
    assert store.storage.drafts() == [] and store.iterations() == [1, 2]


def test_a_zombie_commits_nothing(tmp_path: Path) -> None:
    for told in two_ranks(superseded, tmp_path):
        assert ["fence 1 rejected" in told[0], "fence 2 rejected" in told[1]] == [True, True]
    store = Store(tmp_path / "run")
    assert store.all() == [] and store.storage.drafts() == []
