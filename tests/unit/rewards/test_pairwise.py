"""The share of others that a picture is put above, against counting them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chat_endpoint import completion, endpoint, pictures

from branchgrpo.config import registry
from branchgrpo.rewards.base import Resources, RewardOptions, Scorer
from branchgrpo.rewards.jpeg import JpegReward
from branchgrpo.rewards.judge.options import JudgeReward
from branchgrpo.rewards.pairwise import PairwiseReward, pairs_of
from branchgrpo.types import F32, U8, Sample


class Light(RewardOptions):
    """The first pixel's red."""

    def build(self, resources: Resources) -> Scorer:
        return LightScorer()


class LightScorer(Scorer):
    def score(self, pixels: U8, samples: list[Sample]) -> dict[str, F32]:
        return {"score": pixels[:, 0, 0, 0, 0].astype(np.float32)}


def shares(values: list[int], rivals: int = 0) -> list[float]:
    pixels = np.zeros((len(values), 1, 2, 2, 3), np.uint8)
    pixels[:, 0, 0, 0, 0] = values
    reward = PairwiseReward(of=Light(), rivals=rivals)
    samples = [Sample(prompt="x")] * len(values)
    found: list[float] = reward.build(Resources()).score(pixels, samples)["score"].tolist()
    return found


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=9))
def test_it_is_the_part_of_the_others_that_score_lower(values: list[int]) -> None:
    wanted = [
        np.mean([(one > other) + (one == other) / 2 for j, other in enumerate(values) if j != i])
        if len(values) > 1
        else 0.5
        for i, one in enumerate(values)
    ]
    assert shares(values) == pytest.approx(wanted)


@given(st.integers(2, 12), st.integers(1, 12))
def test_rivals_are_the_next_ones_in_a_circle(count: int, rivals: int) -> None:
    pairs = pairs_of(count, rivals)
    assert len(set(pairs)) == len(pairs) and all(one < other for one, other in pairs)
    met = [sum(place in pair for pair in pairs) for place in range(count)]
    assert set(met) == {min(2 * rivals, count - 1)}


def test_a_tournament_by_few_rivals() -> None:
    # 0 beats nobody, 30 both: of (0, 10), (10, 20), (20, 30), (30, 0)
    assert shares([0, 10, 20, 30], rivals=1) == [0.0, 0.5, 0.5, 1.0]


def test_it_asks_a_judge_about_pairs_and_sees_the_whole_group() -> None:
    def answer(request: dict[str, object]) -> tuple[int, bytes]:
        first, second = (float(one.mean()) for one in pictures(request))
        p = 0.9 if first > second else 0.1
        return 200, completion("A", {"A": p, "B": 1 - p})

    pixels = np.stack([np.full((1, 4, 4, 3), 50 * n, np.uint8) for n in range(3)])
    with endpoint(answer) as made:
        reward = PairwiseReward(of=JudgeReward(url=made.url, model="m"))
        found = reward.build(Resources()).score(pixels, [Sample(prompt="x")] * 3)["score"]
    assert found == pytest.approx([0.1, 0.5, 0.9]) and len(made.requests) == 6
    assert reward.grouped


def test_a_config_nests_any_reward() -> None:
    assert registry.REWARDS.find("pairwise") is PairwiseReward
    reward = PairwiseReward.model_validate({"of": {"name": "jpeg", "want": "large"}})
    assert reward.of == JpegReward(want="large")
    with pytest.raises(ValueError, match="of"):
        PairwiseReward.model_validate({"of": {"name": "nothing"}})
