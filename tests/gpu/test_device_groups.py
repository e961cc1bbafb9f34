"""Process groups of the device's backend: NCCL on cards, gloo on the CPU. Collectives and shards in
a group of one; an update by two ranks, each on a card of its own."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.small_batch import batch, config, outcome, two_ranks

from actors.collectives import form_group
from actors.learner import Learner
from branchgrpo.learner.fsdp import full, shard_weights
from branchgrpo.models.base import Adapter

PARALLEL = ("ddp", "fsdp")
QUIET = {"gates.enabled": "false", "learner.timeout_seconds": "100"}


def place(device: str) -> dict[str, str]:
    """Overrides that put learner ranks on the device, a whole card each."""
    return QUIET | {"learner.gpus": "1" if device.startswith("cuda") else "0"}


def told(folder: str) -> Any:
    """(overrides, request) for the ranks."""
    return pickle.loads((Path(folder) / "told.pickle").read_bytes())


def slopes(model: Adapter) -> dict[str, torch.Tensor]:
    """A forward and backward of fixed inputs: its velocity, and gradients by name."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(2, *model.latent_shape, generator=draw).to(model.device)
    sigma = torch.tensor([0.9, 0.3], device=model.device)
    v = model.velocity(x, sigma, model.fingerprint_conditioning(2))
    v.square().mean().backward()  # type: ignore[no-untyped-call]
    gradients = {
        name: full(value.grad).cpu()
        for name, value in model.trainable().items()
        if value.grad is not None
    }
    return {"": v.detach().cpu()} | gradients


def alone(rank: int, address: str, folder: str) -> None:
    """The only rank: collectives, then the same forward and backward of whole weights and of
    shards."""
    options, _ = told(folder)
    loaded = config(1, options)
    form_group(loaded.learner, rank, 1, address)
    device = torch.device(loaded.learner.device)
    given = torch.arange(5, dtype=torch.float64, device=device)
    found: dict[str, Any] = {"backend": dist.get_backend(), "given": given.cpu()}
    for name, call in {
        "sum": lambda value: dist.all_reduce(value),
        "largest": lambda value: dist.all_reduce(value, op=dist.ReduceOp.MAX),
        "broadcast": lambda value: dist.broadcast(value, 0),
    }.items():
        value = given.clone()
        call(value)
        found[name] = value.cpu()
    objects: list[Any] = [None]
    dist.all_gather_object(objects, "a digest")
    found["objects"] = objects
    for name in ("whole", "shards"):
        torch.set_float32_matmul_precision("highest")
        model = loaded.model.build(str(device), ("denoiser",))
        if name == "shards":
            shard_weights(model, 1, sharing=1, reduce=torch.float32)
        found[name] = slopes(model)
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


def both(rank: int, address: str, folder: str) -> None:
    """One of two: an update with whole weights, and one with shards."""
    options, arguments = told(folder)
    if torch.cuda.is_available() and float(options["learner.gpus"]):
        torch.cuda.set_device(rank)  # an actor of Ray sees its own card alone
    found: dict[str, Any] = {}
    learner = Learner(config(2, options), rank, list)
    learner.join(2, address)
    for parallel in PARALLEL:
        learner.configure(config(2, options | {"learner.parallel": parallel}))
        found[parallel] = outcome(learner, arguments)["gradient"]
        found[parallel] = {name: value.cpu() for name, value in found[parallel].items()}
    found["device"] = str(next(iter(learner.model.trainable().values())).device)
    found["backend"] = dist.get_backend()
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


def backend(device: str) -> str:
    return "nccl" if device.startswith("cuda") else "gloo"


def test_a_group_of_one(device: str, tmp_path: Path) -> None:
    (tmp_path / "told.pickle").write_bytes(pickle.dumps((place(device), ())))
    (found,) = two_ranks(alone, tmp_path, ranks=1)
    assert found["backend"] == backend(device) and found["objects"] == ["a digest"]
    for name in ("sum", "largest", "broadcast"):
        assert torch.equal(found[name], found["given"]), name
    assert found["whole"].keys() == found["shards"].keys() and len(found["whole"]) > 10
    for name, value in found["whole"].items():
        torch.testing.assert_close(found["shards"][name], value, rtol=1e-4, atol=1e-6)


def test_a_group_of_two(device: str, tmp_path: Path) -> None:
    if device.startswith("cuda") and torch.cuda.device_count() < 2:
        pytest.skip(f"two ranks over NCCL: needs 2 cards, found {torch.cuda.device_count()}")
    arguments = batch()
    (tmp_path / "told.pickle").write_bytes(pickle.dumps((place(device), arguments)))
    learner = Learner(config(1, place(device)), 0, list)
    learner.join(1, "")
    one = torch.cat([value.cpu().flatten() for value in gradient(learner, arguments)])
    ranks = two_ranks(both, tmp_path)
    assert [rank["backend"] for rank in ranks] == [backend(device)] * 2
    if device.startswith("cuda"):
        assert [rank["device"] for rank in ranks] == ["cuda:0", "cuda:1"]
    for rank in ranks:
        for parallel in PARALLEL:
            two = torch.cat([value.flatten() for value in rank[parallel].values()])
            assert float((two - one).norm()) <= 1e-2 * float(one.norm()) > 0, parallel


def gradient(learner: Learner, arguments: Any) -> list[torch.Tensor]:
    """Of an update with these trees."""
    return list(outcome(learner, arguments)["gradient"].values())
