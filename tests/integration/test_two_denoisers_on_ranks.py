"""Two learner ranks whose micro-batches go through different denoisers train like one."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_batch import batch, config, outcome, two_ranks

from actors.learner import Learner
from branchgrpo.models.small.wan import small_wan

CASES = {
    "ddp": {"learner.parallel": "ddp"},
    "fsdp": {"learner.parallel": "fsdp", "loss.kl_beta": "10.0"},
    "fsdp, adapters": {"learner.parallel": "fsdp", "model.lora_rank": "2"},
}


def options(folder: str) -> dict[str, str]:
    """A tree's nine parents are of both denoisers: the first two steps of five are above 0.875."""
    model = {"name": "wan", "height": "32", "width": "32", "frames": "5", "true_cfg": "1.0"}
    return {
        "model.path": f"{folder}/wan",
        **{f"model.{key}": value for key, value in model.items()},
        "model.max_sequence_length": "24",
        "sampling.shift": "3.0",
        "learner.micro_batch": "2",
        "gates.enabled": "false",
    }


def note(sides: list[str], name: str, *_: Any) -> None:
    sides.append(name)


def rank_main(rank: int, address: str, folder: str) -> None:
    arguments = pickle.loads((Path(folder) / "batch.pickle").read_bytes())
    learner = Learner(config(2, options(folder) | CASES["ddp"]), rank, list)
    learner.join(2, address)
    found: dict[str, Any] = {}
    for case, keys in CASES.items():
        learner.configure(config(2, options(folder) | keys))
        sides: list[str] = []
        for name, part in learner.model.module.named_children():
            part.register_forward_hook(partial(note, sides, name))
        found[case] = outcome(learner, arguments)
        found[f"{case}/sides"] = sides
        found[f"{case}/fingerprint"] = torch.from_numpy(learner.fingerprint())
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("ranks")
    small_wan(folder / "wan", two=True)
    own = options(str(folder))
    arguments = batch(own)
    (folder / "batch.pickle").write_bytes(pickle.dumps(arguments))
    learner, one = Learner(config(1, own), 0, list), dict[str, Any]()
    for case, keys in CASES.items():
        learner.configure(config(1, own | keys))
        one[case] = outcome(learner, arguments)
        one[f"{case}/fingerprint"] = torch.from_numpy(learner.fingerprint())
    return {"one": one, "ranks": two_ranks(rank_main, folder)}


@pytest.mark.parametrize("case", CASES)
def test_the_update_is_that_of_one_rank(runs: dict[str, Any], case: str) -> None:
    one, (first, second) = runs["one"], runs["ranks"]
    assert first[case]["digest"] == second[case]["digest"]
    wanted = torch.cat([value.flatten() for value in one[case]["gradient"].values()])
    for rank in (first, second):
        found = torch.cat([value.flatten() for value in rank[case]["gradient"].values()])
        assert float(wanted.norm()) > 0
        assert float((found - wanted).norm()) <= 1e-4 * float(wanted.norm())
        assert torch.equal(rank[f"{case}/fingerprint"], first[f"{case}/fingerprint"])
    # of all that trains, something of either denoiser
    names = {name.partition(".")[0] for name, value in one[case]["gradient"].items() if value.any()}
    assert names == {"transformer", "transformer_2"}
    # The ranks' micro-batches are of different denoisers. With weights in shards both go through
    # the same all the same.
    alike = first[f"{case}/sides"] == second[f"{case}/sides"]
    assert alike == (case != "ddp")
