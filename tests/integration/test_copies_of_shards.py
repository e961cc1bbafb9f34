"""Four learner ranks, of which two each share a copy of the weights, train like one rank; their
checkpoint has every number once."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.small_batch import batch, config, outcome, two_ranks

from actors.learner import Learner
from branchgrpo.checkpoint.shards import Shards, file_of
from branchgrpo.checkpoint.store import Store
from branchgrpo.service import CheckpointRequest, RestoredState

pytestmark = pytest.mark.networks

COPIES = {"learner.parallel": "fsdp", "learner.shard": "2"}
CASES: dict[str, dict[str, str]] = {
    "full": {"learner.ema": "0.5"},
    "adapters": {"model.lora_rank": "4", "loss.kl_beta": "10.0"},
    "bfloat16": {"learner.reduce": "bfloat16"},
}


def rank_main(rank: int, address: str, folder: str) -> None:
    arguments = pickle.loads((Path(folder) / "batch.pickle").read_bytes())
    learner = Learner(config(4, COPIES), rank, list)
    learner.join(4, address)
    found: dict[str, Any] = {}
    for case, options in CASES.items():
        learner.configure(config(4, COPIES | options))
        found[case] = outcome(learner, arguments)
        parameters = learner.model.trainable().values()
        found[f"{case}/share"] = sum(value.to_local().numel() for value in parameters) / sum(
            value.numel() for value in parameters
        )
        request = CheckpointRequest(
            where=str(Path(folder) / case), iteration=1, fence=1, driver={"iteration": 1}
        )
        learner.checkpoint(request)
    learner.publish()
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("copies")
    arguments = batch()
    (folder / "batch.pickle").write_bytes(pickle.dumps(arguments))
    learner, one = Learner(config(1), 0, list), dict[str, Any]()
    for case, options in CASES.items():
        learner.configure(config(1, options))
        one[case] = outcome(learner, arguments)
    return {"one": one, "ranks": two_ranks(rank_main, folder, 4), "folder": folder}


@pytest.mark.parametrize("case", CASES)
def test_gradients_and_weights_are_those_of_one_rank(runs: dict[str, Any], case: str) -> None:
    """Gradients that travel in bfloat16 have three digits."""
    one, bound = runs["one"][case], 1e-2 if case == "bfloat16" else 1e-4
    wanted = torch.cat([value.flatten() for value in one["gradient"].values()])
    for rank in runs["ranks"]:
        found = torch.cat([value.flatten() for value in rank[case]["gradient"].values()])
        off = float((found - wanted).norm() / wanted.norm())
        assert (1e-5 if case == "bfloat16" else 0) <= off <= bound
        assert rank[case]["digest"] == runs["ranks"][0][case]["digest"]
        assert rank[case]["stats"].gradient_norm == pytest.approx(
            one["stats"].gradient_norm, rel=10 * bound
        )
        assert 0.45 <= rank[f"{case}/share"] <= 0.55
        for name, value in one["weights"].items():
            # Adam's first step is the gradient's sign, but for those that are rounding noise
            gradient = one["gradient"][name].abs()
            clear = gradient > 0.1 * gradient.max()
            off_weights = (rank[case]["weights"][name] - value).abs()
            assert float(off_weights[clear].max() if clear.any() else 0) <= 1e-4, name


def test_each_number_is_written_once_and_one_rank_goes_on(runs: dict[str, Any]) -> None:
    saved = Store(runs["folder"] / "full").newest()
    assert saved
    sizes = {name: entry[1] for name, entry in saved.files.items() if name.startswith("rank-")}
    assert sizes.keys() <= {file_of(rank, 4) for rank in range(4)}
    whole = sum(
        value.numel() * 4 for cut in [runs["ranks"][0]["full"]["weights"]] for value in cut.values()
    )
    assert sum(sizes.values()) == pytest.approx(4 * whole, rel=0.05)  # weights, mean, moments
    assert len(Shards(saved).tensors) == 4 * len(runs["one"]["full"]["weights"])
    learner = Learner(config(1, CASES["full"]), 0, list)
    restored = learner.restore(str(runs["folder"] / "full"))
    assert restored == RestoredState(driver={"iteration": 1}, damaged=())
    for name, value in learner.model.trainable().items():
        assert torch.equal(value, runs["ranks"][0]["full"]["weights"][name])
