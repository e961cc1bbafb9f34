"""Networks that rest in main memory: the same results, and nothing stays on the device. A copy in
other memory of the CPU stands for the device here; tests/gpu has a card."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from support.records import records
from support.small_trees import quickstart
from torch import Tensor, nn

from actors.reward import loaded
from branchgrpo.models.offload import Offloaded
from branchgrpo.rewards.base import Resources, RewardOptions, Scorer
from branchgrpo.rewards.offloaded import OffloadedScorer
from branchgrpo.types import F32, U8, Sample


class Mixed(nn.Module):
    """Two dtypes, a tied weight, two parameters in one storage, buffers saved and not, an empty
    one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.small = nn.Linear(4, 4, dtype=torch.bfloat16)
        memory = torch.randn(20)
        self.left = nn.Parameter(memory[:8].view(2, 4))
        self.right = nn.Parameter(memory[8:].view(3, 4).t())
        self.register_buffer("scale", torch.tensor(3.0))
        self.register_buffer("positions", torch.arange(4), persistent=False)
        self.register_buffer("empty", torch.empty(0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x)) * self.scale + self.get_buffer("positions")
        found: Tensor = self.small(x.bfloat16()).float() @ self.right @ self.left[:, :3].t()
        return found


def places(module: nn.Module) -> dict[str, int]:
    return {
        name: tensor.untyped_storage().data_ptr()
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
        if tensor.numel()
    }


def test_a_turn_computes_on_copies_that_are_gone_after_it() -> None:
    module, x = Mixed(), torch.randn(5, 4)
    wanted, state = module(x), {key: value.clone() for key, value in module.state_dict().items()}
    offloaded = Offloaded([module, module.first], "cpu")
    rest = places(module)
    for _ in range(2):
        with offloaded.on_device():
            turn = places(module)
            copies = [weakref.ref(value.untyped_storage()) for value in module.parameters()]
            assert all(copy() is not None for copy in copies)
            assert torch.equal(module(x), wanted)
        assert not turn.keys() - rest.keys() and not set(turn.values()) & set(rest.values())
        assert all(copy() is None for copy in copies)
        assert places(module) == rest
    assert torch.equal(module(x), wanted)
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


def test_what_shares_memory_shares_it_in_both_places() -> None:
    module = Mixed()
    left, right = module.left.stride(), module.right.stride()
    offloaded = Offloaded([module], "cpu")
    with offloaded.on_device():
        assert module.second.weight is module.first.weight
        assert len({places(module)["left"], places(module)["right"]}) == 1
        assert module.right.data_ptr() - module.left.data_ptr() == 8 * 4
        assert (module.left.stride(), module.right.stride()) == (left, right)
    assert places(module)["left"] == places(module)["right"]


def test_an_error_ends_the_turn() -> None:
    module = Mixed()
    offloaded = Offloaded([module], "cpu")
    rest = places(module)
    with pytest.raises(ValueError, match="of the network"), offloaded.on_device():
        raise ValueError("of the network")
    assert places(module) == rest


class OwnScorer(Scorer):
    """Of a reward of the user's own, with two networks."""

    trains_on, reports, max_ratio = "mean", ("mean", "other"), 3.0

    def __init__(self) -> None:
        self.one, self.two, self.seen = Mixed(), nn.Linear(4, 1), list[int]()

    def networks(self) -> Iterable[nn.Module]:
        return self.one, self.two

    def score(self, pixels: U8, samples: list[Sample]) -> dict[str, F32]:
        del samples
        self.seen.append(self.two.weight.data_ptr())
        x = torch.from_numpy(pixels.astype(np.float32)).flatten(1)[:, :4] / 255
        with torch.inference_mode():
            rows = self.one(x)[:, 0], self.two(x)[:, 0]
        return {"mean": rows[0].numpy(), "other": rows[1].numpy()}


def test_an_offloaded_scorer_scores_the_same() -> None:
    scorer = OwnScorer()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 1, 2, 2, 3), np.uint8)
    wanted = scorer.score(pixels, records([""] * 6))
    offloaded = OffloadedScorer(scorer, "cpu")
    assert (offloaded.trains_on, offloaded.reports) == ("mean", ("mean", "other"))
    assert offloaded.max_ratio == 3.0
    rest = scorer.two.weight.data_ptr()
    found = offloaded.score(pixels, records([""] * 6))
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    assert scorer.seen[-1] != rest == scorer.two.weight.data_ptr()


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_only_the_key_and_a_card_make_one(offload: bool, device: str) -> None:
    """`meta` stands for a card: nothing is computed."""
    role = quickstart({"reward_workers.offload": str(offload).lower()}).reward_workers
    made = loaded(Plain(), Resources(device=device), role)
    assert isinstance(made, OffloadedScorer) == (offload and device != "cpu")


class Plain(RewardOptions):
    """Without networks, as functions, remote rewards and onnxruntime's are."""

    def build(self, resources: Resources) -> PlainScorer:
        return PlainScorer()


class PlainScorer(Scorer):
    def score(self, pixels: U8, samples: list[Sample]) -> dict[str, F32]:
        return {"score": pixels.mean((1, 2, 3, 4), dtype=np.float32)}


def test_rewards_without_networks_score_as_ever() -> None:
    pixels = np.full((2, 1, 2, 2, 3), 7, np.uint8)
    found = OffloadedScorer(PlainScorer(), "cpu").score(pixels, records(["", ""]))
    assert found["score"].tolist() == [7.0, 7.0]
