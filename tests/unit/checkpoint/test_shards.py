"""Ranks' files of a checkpoint in shards: as the safetensors library reads them, put together, and
refused where they are no whole of tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.small_checkpoints import at, on_both
from torch import Tensor

from branchgrpo.checkpoint.files import Saved, encode_state
from branchgrpo.checkpoint.manifest import STATE, Damaged
from branchgrpo.checkpoint.shards import Shards, file_of, in_shards, whole_tensors, write_rank
from branchgrpo.checkpoint.store import Store
from branchgrpo.errors import StaleFence
from branchgrpo.learner import saved_shards
from branchgrpo.learner.saved_shards import Content, load, save

W = torch.arange(21.0).reshape(7, 3)
B = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
ONE = torch.tensor(4.0)


def cut(ranks: int) -> list[list[tuple[str, Tensor, int, tuple[int, ...]]]]:
    """The three tensors as FSDP cuts them, the last rank perhaps with nothing of one."""
    made: list[list[Any]] = [[] for _ in range(ranks)]
    for name, whole in (("weights/w", W), ("ema/b", B)):
        rows = -(-len(whole) // ranks)
        for rank in range(ranks):
            first = min(rank * rows, len(whole))
            made[rank].append((name, whole[first : first + rows], first, tuple(whole.shape)))
    made[0].append(("weights/one", ONE, 0, ()))
    return made


def written(where: str | Path, ranks: int = 3) -> Saved:
    """A checkpoint whose files are written one after the other."""
    store = Store(where)
    draft = store.begin(5, 0)
    draft.write(STATE, encode_state({"iteration": 5}))
    for rank, pieces in enumerate(cut(ranks)):
        found = write_rank(store.part(draft.text), file_of(rank, ranks), pieces)
        draft.files[found.file] = (found.sha256, found.bytes)
    return store.commit(draft)


@on_both
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_shards_are_put_together(kind: str, ranks: int, tmp_path: Path) -> None:
    written(at(kind, tmp_path), ranks)
    saved = Store(at(kind, tmp_path)).newest()
    assert saved and saved.iteration == 5 and saved.state() == {"iteration": 5}
    assert in_shards(saved) and len(Shards(saved).files) == ranks
    weights, ema = whole_tensors(saved, "weights"), whole_tensors(saved, "ema")
    assert weights.keys() == {"w", "one"} and ema.keys() == {"b"}
    assert torch.equal(weights["w"], W) and torch.equal(weights["one"], ONE)
    assert torch.equal(ema["b"], B) and ema["b"].dtype == torch.bfloat16


def test_the_library_reads_a_ranks_file(tmp_path: Path) -> None:
    saved = written(tmp_path)
    with safe_open(Path(saved.path) / file_of(1, 3), framework="pt") as file:
        assert torch.equal(file.get_tensor("weights/w"), W[3:6])
        assert json.loads(file.metadata()["rows"])["weights/w"] == [3, [7, 3]]


@on_both
def test_one_process_saves_and_loads(kind: str, tmp_path: Path) -> None:
    content = Content(3, 0, {"iteration": 3}, {"small.safetensors": {"x": torch.ones(2)}})
    store = Store(at(kind, tmp_path))
    saved = save(store, content, {"weights/w": W, "ema/b": B, "weights/one": ONE}, None)
    assert saved and torch.equal(saved.tensors("small.safetensors")["x"], torch.ones(2))
    into = {
        "weights/w": torch.zeros(7, 3, dtype=torch.float64),  # another dtype: converted
        "weights/one": torch.zeros(()),
        "ema/b": torch.zeros(4, dtype=torch.bfloat16)[::2],  # not contiguous
    }
    load(Shards(saved), into, None)
    assert torch.equal(into["weights/w"], W.double()) and torch.equal(into["weights/one"], ONE)
    assert torch.equal(into["ema/b"], B)


def test_what_a_rank_raises_is_raised_and_the_draft_goes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(TypeError, match=r"state\.iteration: expected None"):
        save(store, Content(3, 0, {"iteration": object()}, {}), {"weights/w": W}, None)
    assert store.storage.names() == [] and store.newest() is None


def test_a_zombie_whose_draft_is_swept_away_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that its file cannot be written: it must end."""
    zombie, heir = Store(tmp_path), Store(tmp_path)
    fence = zombie.claim()

    def late(*arguments: Any) -> Any:
        monkeypatch.undo()
        save(heir, Content(1, heir.claim(), {}, {}), {"weights/w": W}, None)
        return write_rank(*arguments)

    monkeypatch.setattr(saved_shards, "write_rank", late)
    with pytest.raises(StaleFence, match="fence 1 rejected: fence 2"):
        save(zombie, Content(1, fence, {}, {}), {"weights/w": W}, None)
    assert len(heir.all()) == 1 and heir.storage.drafts() == []


WHOLE = (7, 3)
BAD: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "a row is missing": (lambda: {"w": (W[4:], 4)}, "row 3 is missing, or there twice"),
    "a row is there twice": (lambda: {"w": (W[2:], 2)}, "row 2 is missing, or there twice"),
    "the last row is missing": (lambda: {"w": (W[3:6], 3)}, "rows from 6 on are missing"),
    "a tensor is missing": (lambda: {}, "rows from 3 on are missing"),
    "another dtype": (lambda: {"w": (W[3:].half(), 3)}, "expected one dtype and shape"),
    "numbers of no use": (lambda: {"w": (W[3:].int(), 3)}, "expected float32 or alike, got I32"),
    "beyond the end": (lambda: {"w": (W[3:], 5)}, r"rows 5 to 9 of shape \(4, 3\) are none of"),
    "before the beginning": (lambda: {"w": (W[3:], -1)}, r"rows -1 to 3 of shape"),
    "another width": (lambda: {"w": (W[3:, :2].contiguous(), 3)}, "are none of"),
    "no place": (lambda: {"w": (W[3:], None)}, "expected its first row and the whole shape"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_whole_of_tensors_is_damaged(case: str, tmp_path: Path) -> None:
    """The second file is a stranger's."""
    make, line = BAD[case]
    store = Store(tmp_path)
    draft = store.begin(5, 0)
    draft.write(STATE, encode_state({}))
    first = write_rank(draft.folder, file_of(0, 2), [("weights/w", W[:3], 0, WHOLE)])
    draft.files[first.file] = (first.sha256, first.bytes)
    tensors = {f"weights/{name}": rows for name, (rows, _) in make().items()}
    places = {
        f"weights/{name}": [first, list(WHOLE)]
        for name, (_, first) in make().items()
        if first is not None
    }
    stranger = tmp_path / "stranger"
    save_file(tensors, stranger, {"rows": json.dumps(places)})
    draft.write(file_of(1, 2), stranger.read_bytes())
    stranger.unlink()
    saved = store.commit(draft)
    with pytest.raises(Damaged, match=line):
        whole_tensors(saved, "weights")
