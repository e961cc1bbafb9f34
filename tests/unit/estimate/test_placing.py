"""Memory by role in closed form, GPUs, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.small_trees import METHOD, QUICKSTART

from branchgrpo.config import load
from branchgrpo.config.schema import Config
from branchgrpo.config.shipped import config_file
from branchgrpo.errors import UserError
from branchgrpo.estimate import memory, placing
from branchgrpo.estimate.cards import CARDS, card, recognised
from branchgrpo.estimate.memory import PROCESS, Need
from branchgrpo.estimate.model import ModelNeeds
from branchgrpo.estimate.work import Work
from branchgrpo.learner.gradients import GradientSums

P = 12_000_000_000
H100 = CARDS["h100"]


def config(**keys: str) -> Config:
    return load.load(QUICKSTART, {"learner.gpus": "1", "rollout.gpus": "1"} | _dotted(keys), METHOD)


def _dotted(keys: dict[str, str]) -> dict[str, str]:
    return {name.replace("__", "."): value for name, value in keys.items()}


def whole(**changed: Any) -> ModelNeeds:
    """All of 12 B weights learn, in bfloat16; 60 equal blocks, a GB of activations a latent."""
    given = {
        "parameters": P,
        "trained": P,
        "weights": 2.0 * P,
        "trained_bytes": 2.0 * P,
        "largest_block": P // 60,
        "forward": Work(peak=0.2e9),
        "evaluation": Work(peak=0.2e9),
        "training": Work(peak=1e9),
    }
    return ModelNeeds(**given | changed)


def need(role: str, gpus: float, count: int = 1, weights: float = 10e9, **changed: Any) -> Need:
    given: dict[str, Any] = {
        "resident": {"weights": weights},
        "growing": {},
        "updating": {},
        "least": 0.0,
        "device": "cuda",
    }
    return Need(role=role, gpus=gpus, count=count, **given | changed)


def held(found: Need) -> float:
    """By a learner beside activations and what it gathers."""
    return sum(found.resident.values()) + found.updating["gradients"]


def test_a_ddp_rank_holds_20_bytes_a_bfloat16_weight() -> None:
    found = memory.learner(config(learner__micro_batch="1"), whole(), shared=False)
    assert held(found) == (2 + 4 + 2 + 4 + 8) * P
    assert found.peak == found.smallest == 20 * P + 1e9 + PROCESS


def test_a_ddp_rank_holds_20_bytes_a_float32_weight() -> None:
    """Its own 4, 4 of the gradient, 4 of its sum, which is apart, and 8 of moments."""
    model = whole(weights=4.0 * P, trained_bytes=4.0 * P, trained_32=4.0 * P)
    for ranks in ("1", "2"):  # sums go between ranks in pieces that are not worth counting
        found = memory.learner(config(learner__ranks=ranks), model, shared=False)
        assert held(found) == (4 + 4 + 4 + 8) * P
        assert "masters" not in found.resident


def test_a_loss_holds_what_it_compares_with() -> None:
    plain = held(memory.learner(config(), whole(), shared=False))
    for loss, more in (
        ("{name: nft, kl_beta: 0}", 4),  # the second set, float32
        ("{name: nft}", 4 + 2),  # and the base
        ("{name: dgpo, kl_beta: 0, clip_range: 0}", 2),  # which ω takes
        ("{name: awm, kl_beta: 0, mean_beta: 0}", 0),
        ("{name: clipped, mean_beta: 1}", 4),
    ):
        assert held(memory.learner(config(loss=loss), whole(), shared=False)) - plain == more * P


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_optimiser_state_is_what_an_update_holds(dtype: torch.dtype) -> None:
    """Tensors of the learner's own classes, one optimiser step later, beside the weights."""
    weight = torch.zeros(300, 7, dtype=dtype, requires_grad=True)
    master = weight if dtype == torch.float32 else weight.detach().float()
    sums = GradientSums([weight], [master], 1)
    adam = torch.optim.AdamW([master])
    sums.begin()
    weight.sum().backward()
    assert weight.grad is not None
    held = weight.grad.nbytes + sums.sums[0].nbytes
    sums.add()
    sums.finish()
    adam.step()
    moments = [adam.state[master][name] for name in ("exp_avg", "exp_avg_sq")]
    held += sum(one.nbytes for one in moments) + (master.nbytes if master is not weight else 0)
    wide = float(weight.nbytes) if dtype == torch.float32 else 0.0
    model = whole(trained=2100, trained_bytes=float(weight.nbytes), trained_32=wide)
    assert sum(memory.optimiser_state(config(), model, 1).values()) == held


def test_fsdp_ranks_share_16_bytes_a_weight_and_gather_blocks() -> None:
    keys = {"learner__parallel": "fsdp", "learner__ranks": "8", "learner__micro_batch": "2"}
    found = memory.learner(config(**keys), whole(), shared=False)
    assert held(found) == 16 * P / 8
    block = P / 60
    # two blocks in bfloat16; one's gradients in that and in float32
    assert found.updating["gathered blocks"] == 2 * block * 2 + block * (2 + 4)
    assert found.peak == 2 * P + 10 * block + 2e9 + PROCESS
    assert found.smallest == found.peak  # micro-batches of such ranks are not halved
    growing = memory.learner(config(**keys), whole(), shared=True).growing
    assert growing["gathered weights"] == 2.0 * P and "gradients" not in growing


def test_copies_of_the_weights_are_shared_by_fewer_ranks() -> None:
    keys = {"learner__parallel": "fsdp", "learner__ranks": "8", "learner__shard": "4"}
    found = memory.learner(config(**keys), whole(), shared=False)
    assert held(found) == 16 * P / 4
    narrow = memory.learner(config(**keys, learner__reduce="bfloat16"), whole(), shared=False)
    saved = found.updating["gathered blocks"] - narrow.updating["gathered blocks"]
    assert saved == 2 * P / 60
    # ranks that come and go: the largest number up to it that divides them
    options = config(**keys).learner
    assert [options.sharing(ranks) for ranks in (1, 2, 3, 4, 6, 7, 8, 12)] == [
        1,
        2,
        3,
        4,
        3,
        1,
        4,
        4,
    ]
    assert config(learner__ranks="8").learner.sharing(8) == 1
    whole_group = config(learner__parallel="fsdp", learner__ranks="8").learner
    assert [whole_group.sharing(ranks) for ranks in (8, 3)] == [8, 3]


def test_adapters_add_20_bytes_each_to_frozen_weights() -> None:
    few = 50_000_000
    model = whole(adapted=True, trained=few, trained_bytes=2.0 * few, weights=2.0 * P)
    found = memory.learner(config(), model, shared=False)
    assert held(found) == 2 * P + (4 + 2 + 4 + 8) * few
    keys = {"learner__ranks": "4", "learner__parallel": "fsdp"}
    shards = memory.learner(config(**keys), whole(**vars(model)), shared=False)
    # shards of adapters are float32, as are their gradients
    rest = 2 * P - 2 * few
    assert held(shards) == (rest + (4 + 4 + 8) * few) / 4
    assert shards.updating["gathered blocks"] == 2 * 2 * P / 60


def test_evaluation_by_the_mean_keeps_weights_that_have_no_masters() -> None:
    keys = {"learner__ema": "0.9", "learner__parallel": "fsdp", "learner__ranks": "8"}
    mean = config(**keys, evaluation__weights="ema")
    kept = "weights but for their mean"
    assert memory.learner(mean, whole(), shared=True).growing[kept] == 4 * P / 8
    assert kept not in memory.learner(config(**keys), whole(), shared=True).growing
    apart = config(learner__ema="0.9", evaluation__weights="ema")  # ddp in bfloat16
    assert kept not in memory.learner(apart, whole(), shared=True).growing


def test_what_rests_in_main_memory_comes_for_a_turn() -> None:
    keys = {"model__offload_encoders": "true", "rollout__max_batch": "1"}
    model = whole(decoder=0.3e9, encoders=9e9)
    found = memory.rollout(config(**keys), model, 1)
    assert found.resting == 9e9 and found.growing == {"text encoders": 9e9}
    assert "text encoders" not in found.resident
    ahead = memory.rollout(config(model__encode="precompute"), model, 1)
    assert not ahead.resting
    on_cpu = memory.rollout(config(**keys, rollout__gpus="0"), model, 1)
    assert not on_cpu.resting and on_cpu.resident["text encoders"] == 9e9


@pytest.mark.parametrize("gpus", ["0", "0.5"])
def test_scorers_take_turns_on_a_card(gpus: str) -> None:
    keys = {"reward_workers__offload": "true", "reward_workers__gpus": gpus}
    chosen = load.load(config_file("flux.1-dev-1node"), _dotted(keys))
    sizes = [one.weights for reward in chosen.rewards if (one := reward.footprint(1))]
    (found,) = memory.rewards(chosen, 1)
    assert len(sizes) == 2
    on_card = gpus != "0"
    assert found.resting == (sum(sizes) if on_card else 0)
    assert found.resident == ({} if on_card else {"weights": sum(sizes)})
    assert found.growing.get("scorer", 0) == (max(sizes) if on_card else 0)


def test_mean_of_weights_and_frozen_base() -> None:
    keys = {"learner__ema": "0.9", "loss__kl_beta": "0.1"}
    found = memory.learner(config(**keys), whole(), shared=False)
    assert held(found) == (20 + 4 + 2) * P


def test_a_rollout_worker_holds_what_it_grows_and_decodes_with() -> None:
    model = whole(decoder=0.3e9, encoders=9e9, decode=Work(peak=1e9), pixels=1_000_000)
    found = memory.rollout(config(rollout__max_batch="8", model__decode_batch="4"), model, 5)
    assert found.resident == {"weights": 2.0 * P, "decoder": 0.3e9, "text encoders": 9e9}
    assert found.growing == {"decode": 4 * (1e9 + 2 * 3 * 4 * 1e6)}
    ahead = config(rollout__max_batch="8", model__encode="precompute")
    assert "text encoders" not in memory.rollout(ahead, model, 5).resident


def test_what_cannot_fit_is_refused_with_its_sum() -> None:
    chosen = config()
    found = memory.learner(chosen, whole(), shared=False)
    (line,) = placing.problems(chosen, [found], H100)
    assert line.startswith("learner: expected at most 85.5 GB, a h100, got 242 GB a process")
    assert "masters 48.0 GB" in line and "moments 96.0 GB" in line and "\n" not in line
    assert "learner.parallel: fsdp with learner.ranks: 3" in line and "model.lora_rank" in line
    assert not placing.problems(chosen, [found], None)


def test_what_is_halved_until_it_fits_is_a_note() -> None:
    chosen = config(learner__micro_batch="64")
    model = whole(adapted=True, trained=0, trained_bytes=0.0)
    found = memory.learner(chosen, model, shared=False)
    assert not placing.problems(chosen, [found], H100)
    (line,) = placing.notes(chosen, [found], H100)
    assert line.startswith("learner.micro_batch: 89.5 GB on a h100 of 85.5 GB")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"rollout__gpus": "2"}, "rollout.gpus: expected at most 1"),
        ({"learner__gpus": "0.5", "learner__ranks": "2"}, "learner.gpus: expected more than 0.5"),
    ],
)
def test_reservations_that_waste_a_card_or_break_nccl(keys: dict[str, str], words: str) -> None:
    chosen = config(**keys)
    needs = [
        memory.rollout(chosen, whole(), 1),
        memory.learner(chosen, whole(adapted=True), shared=False),
    ]
    assert [words in line for line in placing.problems(chosen, needs, None)] == [True]


def test_gloo_ranks_may_share_a_card() -> None:
    chosen = config(learner__gpus="0.5", learner__ranks="2", learner__backend="gloo")
    small = memory.learner(chosen, whole(adapted=True), shared=False)
    assert not placing.problems(chosen, [small], None)


def test_roles_that_share_a_card_must_fit_it_together() -> None:
    pair = [need("learner", 0.6, 8, weights=60e9), need("reward", 0.4, 8, weights=20e9)]
    assert not placing.problems(config(), pair, H100)
    pair[1] = need("reward", 0.4, 8, weights=30e9)
    (line,) = placing.problems(config(), pair, H100)
    assert line.startswith("learner.gpus, reward_workers.gpus: expected roles that fit one h100")
    # fractions that do not go on one card keep them apart
    pair[1] = need("reward", 0.5, 8, weights=30e9)
    assert not placing.problems(config(), pair, H100)


@pytest.mark.parametrize(
    ("needs", "cards"),
    [
        ([need("rollout", 1, 5), need("reward", 1, 1), need("learner", 1, 2)], 8),
        ([need("learner", 0.75, 8), need("reward", 0.25, 8)], 8),
        ([need("learner", 0.75, 8), need("reward", 0.5, 3)], 10),
        ([need("rollout", 0.1, 10)], 1),
        ([need("rollout", 0, 4)], 0),
    ],
)
def test_gpus_wanted(needs: list[Need], cards: int) -> None:
    assert placing.cards_wanted(needs) == cards


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("A100-40G", "a100-40gb"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA H20", "h20"),
        ("NVIDIA B200", "b200"),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_cards_by_what_drivers_and_ray_call_them(name: str, expected: str | None) -> None:
    found = recognised(name)
    assert (found.name if found else None) == expected


def test_an_unknown_card_is_refused() -> None:
    assert card("H100") is H100
    with pytest.raises(UserError, match=r"--card: expected one of b200, .*, got 'h101'"):
        card("h101")
