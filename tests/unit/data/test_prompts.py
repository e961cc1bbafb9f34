"""The order prompts are dealt in, and what is held out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.prompt_checks import one_line
from support.small_trees import quickstart

from branchgrpo.data import prompts
from branchgrpo.data.records import prompts_of
from branchgrpo.errors import UserError


@pytest.mark.parametrize(("count", "batch"), [(10, 3), (12, 4), (5, 5), (7, 1), (9, 8)])
def test_every_epoch_deals_different_prompts(count: int, batch: int) -> None:
    per_epoch = count // batch
    for epoch in range(4):
        dealt = [
            index
            for place in range(per_epoch)
            for index in prompts.deal(count, batch, epoch * per_epoch + place, 3)
        ]
        assert len(dealt) == len(set(dealt)) == per_epoch * batch
        assert set(dealt) <= set(range(count))


@pytest.mark.parametrize(
    ("count", "batch"), [(1, 1), (10, 3), (257, 16), (65_537, 32), (300_000, 7)]
)
@pytest.mark.parametrize("seed", [0, 7, 2**40])
def test_the_order_is_numpy_s_permutation_of_each_epoch(count: int, batch: int, seed: int) -> None:
    per_epoch = count // batch
    for epoch in (0, 1, 5):
        order = np.random.default_rng((seed, epoch)).permutation(count)
        for place in {0, per_epoch // 2, per_epoch - 1}:
            assert (
                prompts.deal(count, batch, epoch * per_epoch + place, seed)
                == order[place * batch : (place + 1) * batch].tolist()
            )


def test_dealing_depends_on_position_and_seed_alone() -> None:
    forwards = [prompts.deal(50, 4, i, 1) for i in range(40)]
    assert [prompts.deal(50, 4, i, 1) for i in reversed(range(40))] == forwards[::-1]
    assert [prompts.deal(50, 4, i, 2) for i in range(40)] != forwards
    assert forwards[:12] != forwards[12:24]  # epochs are shuffled anew


def test_another_process_goes_on_in_the_same_place() -> None:
    code = (
        "from branchgrpo.data import prompts; print([prompts.deal(100, 8, i, 5) for i in "
        "range(17, 40)])"
    )
    resumed = json.loads(
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout
    )
    assert [prompts.deal(100, 8, i, 5) for i in range(40)][17:] == resumed


def test_an_epoch_is_shuffled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shuffled, original = [], prompts._shuffled
    monkeypatch.setattr(
        prompts, "_shuffled", lambda count, seed: shuffled.append(seed) or original(count, seed)
    )
    prompts._epoch.cache_clear()
    for iteration in range(36):
        prompts.deal(50, 4, iteration, 1)
    assert shuffled == [(1, 0), (1, 1), (1, 2)]


def test_what_is_left_over_changes_between_epochs() -> None:
    seen = {index for i in range(60) for index in prompts.deal(7, 3, i, 0)}
    assert seen == set(range(7))


def test_a_batch_larger_than_the_list() -> None:
    with pytest.raises(UserError) as caught:
        prompts.deal(3, 4, 0, 0)
    one_line(
        caught,
        "rollout.prompts: expected at most 3, the number of different training prompts, got 4",
    )


# ---- the held-out split


@pytest.mark.parametrize(("total", "count"), [(2, 1), (10, 3), (10, 9), (100, 40)])
def test_a_split_parts_the_list(total: int, count: int) -> None:
    texts = [f"prompt {number}" for number in range(total)]
    for seed in range(5):
        train, held_out = map(prompts_of, prompts.split(texts, count, seed))
        assert (len(train), len(held_out)) == (total - count, count)
        # those that stay, in their order
        assert train == [text for text in texts if text not in set(held_out)]
        assert sorted([*train, *held_out]) == sorted(texts)
        again = prompts.split(texts, count, seed)
        assert [prompts_of(part) for part in again] == [train, held_out]
        assert again[0][-1] == again[0][total - count - 1]
        assert prompts_of(again[1][:2]) == held_out[:2]


def test_a_split_is_drawn_evenly_and_unlike_the_first_epoch() -> None:
    texts = [str(number) for number in range(20)]
    drawn = [prompts_of(prompts.split(texts, 4, seed)[1]) for seed in range(1000)]
    counts = np.bincount([int(text) for part in drawn for text in part], minlength=20)
    # binomial, five standard deviations
    assert np.abs(counts - 200).max() < 5 * np.sqrt(1000 * 0.2 * 0.8)
    firsts = np.bincount([int(part[0]) for part in drawn], minlength=20)
    assert np.abs(firsts - 50).max() < 5 * np.sqrt(1000 * 0.05 * 0.95)
    alike = sum(
        [int(text) for text in part] == prompts.deal(20, 4, 0, seed)
        for seed, part in enumerate(drawn)
    )
    assert alike <= 1  # 1 of 116,280 by chance


def test_lists_of_a_config(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    texts = [f"number {number}" for number in range(50)]
    path.write_text("\n".join(texts))
    own = {"prompts": str(path), "held_out": "embedded:heldout", "run.seed": "4"}
    train, held_out = prompts.lists(quickstart(own))
    assert prompts_of(train) == texts
    assert list(held_out) == list(prompts.read("held_out", "embedded:heldout"))
    train, held_out = prompts.lists(quickstart(own | {"held_out": "split:12"}))
    assert [list(part) for part in (train, held_out)] == [
        list(part) for part in prompts.split(texts, 12, prompts.SPLIT_SEED)
    ]
    trained = {
        train[index].prompt
        for iteration in range(38)
        for index in prompts.deal(len(train), 4, iteration, 4)
    }
    assert trained == set(texts) - set(prompts_of(held_out))
    other = prompts.lists(quickstart(own | {"held_out": "split:12", "run.seed": "5"}))
    assert list(other[1]) == list(held_out)  # seeds are compared on the same prompts


@pytest.mark.parametrize("others", ["split:12", "FILE"])
def test_a_split_beside_a_second_held_out_list(tmp_path: Path, others: str) -> None:
    path, second = tmp_path / "list.txt", tmp_path / "second.txt"
    texts = {f"number {number}" for number in range(50)}
    path.write_text("\n".join(texts))
    second.write_text("\n".join(f"number {number}" for number in range(45, 60)))
    others = others.replace("FILE", str(second))
    own = {"prompts": str(path)}
    _, kept = map(set, map(prompts_of, prompts.lists(quickstart(own | {"held_out": others}))))
    found = prompts.lists(quickstart(own | {"held_out": f"split:7:{others}"}))
    train, held_out = map(prompts_of, found)
    assert len(held_out) == 7 and not set(held_out) & (kept | set(train))
    assert set(train) | set(held_out) == texts - kept and len(train) == len(texts - kept) - 7


BAD = ["0", "50", "51", "-1", "1.5", "", "ten", "9" * 40, " 3", "3:", ":split:3", "46:split:4"]


@pytest.mark.parametrize("count", BAD)
def test_split_errors(tmp_path: Path, count: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text("\n".join(f"number {number}" for number in range(50)))
    with pytest.raises(UserError) as caught:
        prompts.lists(
            quickstart().model_copy(update={"prompts": str(path), "held_out": f"split:{count}"})
        )
    one_line(caught, "held_out: expected split:N with N")
