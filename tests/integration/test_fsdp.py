"""Two learner ranks with sharded weights train like one rank with whole ones: full weights,
adapters with KL, EMA, export."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_batch import batch, config, outcome, two_ranks
from torch.distributed.tensor import DTensor

from actors.learner import Learner
from branchgrpo.models import weights as wire
from branchgrpo.models.flux import FluxModel
from branchgrpo.service import CheckpointRequest, RestoredState

SHARDED = {"learner.parallel": "fsdp"}
CASES = {
    "full": {"learner.ema": "0.5"},
    "frozen": {"loss.kl_beta": "10.0"},
    "adapters": {
        "model.lora_rank": "4",
        "loss.kl_beta": "10.0",
        "model.gradient_checkpointing": "true",
    },
}


def published(learner: Learner, weights: str = "policy") -> dict[str, torch.Tensor]:
    _, update, *chunks = learner.publish(weights)
    assert len(chunks) == learner.specification().chunks
    return wire.unpack_weights(update, chunks)


def rank_main(rank: int, address: str, folder: str) -> None:
    arguments = pickle.loads((Path(folder) / "batch.pickle").read_bytes())
    learner = Learner(config(2, SHARDED), rank, list)
    learner.join(2, address)
    found: dict[str, Any] = {}
    for case, options in CASES.items():
        learner.configure(config(2, SHARDED | options))
        found[case] = outcome(learner, arguments)
        parameters = learner.model.trainable().values()
        found[f"{case}/share"] = sum(value.to_local().numel() for value in parameters) / sum(
            value.numel() for value in parameters
        )
        state = [
            value
            for one in learner.policy.optimiser.state.values()
            for name, value in one.items()
            if name == "exp_avg"
        ]
        request = CheckpointRequest(
            where=str(Path(folder) / case), iteration=1, fence=1, driver={"iteration": 1}
        )
        assert bool(learner.checkpoint(request).path) == (rank == 0)
        found[f"{case}/sharded state"] = (
            all(isinstance(value, DTensor) for value in state) and len(state) > 0
        )
        found[f"{case}/fingerprint"] = torch.from_numpy(learner.fingerprint())
        for weights in ("policy", "ema") if case == "full" else ("policy",):
            sent = learner.publish(weights)
            assert rank == 0 or sent == [None] * (2 + learner.specification().chunks)
            found[f"{case}/{weights}"] = (
                wire.unpack_weights(sent[1], sent[2:]) if rank == 0 else None
            )
    learner.configure(config(2, SHARDED | {"run.export": "transformer"}))
    learner.update(*arguments)
    learner.export(Path(folder) / "exported")
    found["before"] = published(learner) if rank == 0 else learner.publish()
    for _, payload in arguments[0].segments:
        payload.latents[:] = float("nan") if rank else payload.latents  # on the second rank alone
    learner.configure(config(2, SHARDED | {"gates.enabled": "false"}))
    found["start"] = {
        name: value.full_tensor().clone() for name, value in learner.model.trainable().items()
    }
    found["poisoned"] = outcome(learner, arguments)
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one rank with whole weights, and each of two ranks with shards, made of the same
    trees."""
    folder = tmp_path_factory.mktemp("fsdp")
    arguments = batch()
    (folder / "batch.pickle").write_bytes(pickle.dumps(arguments))
    learner, one = Learner(config(1), 0, list), dict[str, Any]()
    for case, options in CASES.items():
        learner.configure(config(1, options))
        one[case] = outcome(learner, arguments)
        one[f"{case}/fingerprint"] = torch.from_numpy(learner.fingerprint())
        for weights in ("policy", "ema") if case == "full" else ("policy",):
            one[f"{case}/{weights}"] = published(learner, weights)
    return {"one": one, "ranks": two_ranks(rank_main, folder), "folder": folder}


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_one_rank(runs: dict[str, Any], case: str) -> None:
    wanted = torch.cat([value.flatten() for value in runs["one"][case]["gradient"].values()])
    for rank in runs["ranks"]:
        found = torch.cat([value.flatten() for value in rank[case]["gradient"].values()])
        assert float(wanted.norm()) > 0
        assert float((found - wanted).norm()) <= 1e-4 * float(wanted.norm())


@pytest.mark.parametrize("case", CASES)
def test_the_update_is_that_of_one_rank(runs: dict[str, Any], case: str) -> None:
    """Adam's first step is the gradient's sign nearly everywhere: only entries whose gradient is
    rounding noise may differ."""
    one = runs["one"][case]
    for rank in (found[case] for found in runs["ranks"]):
        assert rank["weights"].keys() == one["weights"].keys()
        for name, wanted in one["weights"].items():
            gradient = one["gradient"][name].abs()
            clear = gradient > 1e-3 * gradient.max()
            off = (rank["weights"][name] - wanted).abs()
            assert float(off.max()) <= 2.01e-3
            assert float(off[clear].max() if clear.any() else 0) <= 1e-5, name
        assert rank["stats"].gradient_norm == pytest.approx(one["stats"].gradient_norm, rel=1e-3)
        assert rank["stats"].kl == pytest.approx(one["stats"].kl, rel=1e-3, abs=1e-9)
        assert rank["stats"].optimiser_steps == 1 and rank["stats"].skipped_steps == 0
        norm = rank["stats"].velocity_norm
        assert norm == pytest.approx(one["stats"].velocity_norm, abs=1e-4) and norm != 1.0
    assert runs["ranks"][0][case]["digest"] == runs["ranks"][1][case]["digest"]


@pytest.mark.parametrize("case", CASES)
def test_every_rank_holds_half_of_weights_and_optimiser_state(
    runs: dict[str, Any], case: str
) -> None:
    for rank in runs["ranks"]:
        assert 0.45 <= rank[f"{case}/share"] <= 0.55
        assert rank[f"{case}/sharded state"]


@pytest.mark.parametrize("case", CASES)
def test_what_is_published_is_whole(runs: dict[str, Any], case: str) -> None:
    first, second = runs["ranks"]
    sent = first[f"{case}/policy"]
    assert second[f"{case}/policy"] is None
    assert (
        all(torch.equal(value, first[case]["weights"][name]) for name, value in sent.items())
        and sent.keys() == runs["one"][f"{case}/policy"].keys()
    )
    torch.testing.assert_close(
        first[f"{case}/fingerprint"], second[f"{case}/fingerprint"], rtol=0, atol=0
    )
    # a step of 1e-3, either way, in a few weights
    torch.testing.assert_close(
        first[f"{case}/fingerprint"], runs["one"][f"{case}/fingerprint"], rtol=0, atol=5e-3
    )


def test_the_mean_of_the_weights_is_published_whole(runs: dict[str, Any]) -> None:
    first, start = runs["ranks"][0], runs["ranks"][0]["start"]
    for name, value in first["full/ema"].items():  # after one step a tenth is where it began
        torch.testing.assert_close(
            value, 0.1 * start[name] + 0.9 * first["full/policy"][name], rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("case", CASES)
def test_one_rank_goes_on_from_the_checkpoint_of_two(runs: dict[str, Any], case: str) -> None:
    learner = Learner(config(1, CASES[case]), 0, list)
    assert learner.restore(str(runs["folder"] / case)) == RestoredState(
        driver={"iteration": 1}, damaged=()
    )
    assert all(
        torch.equal(value, runs["ranks"][0][case]["weights"][name])
        for name, value in learner.model.trainable().items()
    )
    moments = {
        name: learner.policy.optimiser.state[master]["exp_avg"]
        for name, master in learner.policy.named_masters().items()
    }
    for name, value in moments.items():  # a tenth of the gradient, which is kept as it was clipped
        torch.testing.assert_close(
            value, 0.1 * runs["ranks"][0][case]["gradient"][name], rtol=1e-4, atol=1e-7
        )
    assert learner.version == 1 and learner.policy.scheduler.last_epoch == 1


def test_nan_on_one_rank_makes_both_skip(runs: dict[str, Any]) -> None:
    for rank in runs["ranks"]:
        stats = rank["poisoned"]["stats"]
        assert (stats.skipped_steps, stats.optimiser_steps) == (1, 0)
        assert all(
            torch.equal(rank["poisoned"]["weights"][name], value)
            for name, value in rank["start"].items()
        )


def test_the_exported_transformer_is_the_whole_one(runs: dict[str, Any]) -> None:
    from diffusers import FluxTransformer2DModel

    loaded = FluxTransformer2DModel.from_pretrained(runs["folder"] / "exported")
    sent = runs["ranks"][0]["before"]
    assert all(torch.equal(value, sent[name]) for name, value in loaded.named_parameters()) and len(
        sent
    ) == len(list(loaded.parameters()))
    untrained = (
        FluxModel(path="embedded:tiny-flux", height=32, width=32)
        .build("cpu", ("denoiser",))
        .trainable()
    )
    assert any(not torch.equal(value, untrained[name]) for name, value in sent.items())
