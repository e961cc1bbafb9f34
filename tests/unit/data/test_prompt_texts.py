"""Texts are unique, not their places: within a list, in a batch, and between training and held-out
prompts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from support.prompt_checks import one_line
from support.small_trees import quickstart

from branchgrpo.config.schema import Config
from branchgrpo.data import check as prompt_check
from branchgrpo.data import prompts
from branchgrpo.data.records import prompts_of
from branchgrpo.errors import UserError

DUPLICATES = ["same prompt number 12"] * 30 + [
    f"a sign that says number {number}" for number in range(10, 30)
]


def config(tmp_path: Path, train: list[str], held_out: list[str] | str, **keys: str) -> Config:
    (tmp_path / "train.txt").write_text("\n".join(train))
    if not isinstance(held_out, str):
        (tmp_path / "held.txt").write_text("\n".join(held_out))
        held_out = str(tmp_path / "held.txt")
    few = {"evaluation.prompts": "2", "evaluation.prompts_between": "2", "rollout.prompts": "4"}
    return quickstart({"prompts": str(tmp_path / "train.txt"), "held_out": held_out} | few | keys)


@pytest.mark.parametrize(
    "name", ["list.txt", "list.jsonl", "list.json", "list.csv", "list.parquet"]
)
def test_a_text_that_comes_again_is_left_out_and_counted(tmp_path: Path, name: str) -> None:
    path, texts = tmp_path / name, ["b", "a", "b", "", " a ", "c", "b"]
    if name.endswith("parquet"):
        parquet.write_table(pyarrow.table({"text": texts}), path)
    else:
        form = {
            "txt": "\n".join,
            "csv": lambda found: "\n".join(["text,", *(f'"{text}",' for text in found)]),
            "json": json.dumps,
        }
        form["jsonl"] = lambda found: "\n".join(map(json.dumps, found))
        path.write_text(form[path.suffix[1:]](texts))
    found = prompts.read("prompts", str(path))
    assert (
        prompts_of(found) == ["b", "a", "c"] and found[2].prompt == "c"
    )  # the order is the file's
    assert (found.repeated, found.blank) == (3, 1)
    assert [found.number(place) for place in range(3)] == [
        place + ("csv" in name) for place in (1, 2, 6)
    ]


def test_30_duplicates_of_50_put_no_held_out_text_into_training(tmp_path: Path) -> None:
    train, held_out = map(prompts_of, prompts.lists(config(tmp_path, DUPLICATES, "split:15")))
    assert len(set(train)) == len(train) == 6 and len(set(held_out)) == len(held_out) == 15
    assert not set(train) & set(held_out) and {*train, *held_out} == set(DUPLICATES)


def test_a_batch_holds_no_text_twice(tmp_path: Path) -> None:
    train, _ = prompts.lists(config(tmp_path, DUPLICATES, "split:2"))
    for iteration in range(100):
        batch = [train[index].prompt for index in prompts.deal(len(train), 4, iteration, 0)]
        assert len(set(batch)) == 4


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=30), st.integers(0, 5), st.data())
def test_a_split_parts_texts(texts: list[str], seed: int, data: st.DataObject) -> None:
    different = list(dict.fromkeys(texts))
    count = data.draw(st.integers(1, len(different)))
    if count == len(different):
        with pytest.raises(UserError, match=f"{len(different)} different texts, got {count}"):
            prompts.split(texts, count, seed)
        return
    train, held_out = map(prompts_of, prompts.split(texts, count, seed))
    assert len(held_out) == count and not set(train) & set(held_out)
    assert train == [text for text in different if text not in set(held_out)]
    assert [prompts_of(part) for part in prompts.split(different, count, seed)] == [
        train,
        held_out,
    ]


def test_lists_without_duplicates_are_split_and_dealt_as_ever(tmp_path: Path) -> None:
    texts = [f"number {number}" for number in range(50)]
    train, held_out = map(prompts_of, prompts.lists(config(tmp_path, texts, "split:12")))
    order = np.random.default_rng((prompts.SPLIT_SEED, 0, 1)).permutation(50)[:12]
    assert held_out == [texts[place] for place in order]
    dealt = [train[index] for index in prompts.deal(len(train), 4, 0, 7)]
    assert dealt == [train[place] for place in np.random.default_rng((7, 0)).permutation(38)[:4]]


def test_too_few_different_texts_for_a_batch_or_for_evaluation(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        prompt_check.check(config(tmp_path, ["a", "b", "c", "a"], ["x", "y"]))
    one_line(
        caught,
        "rollout.prompts: expected at most 3, the number of different training prompts, got 4",
        "train.txt, where 1 more are repeated",
    )
    with pytest.raises(UserError) as caught:
        prompt_check.check(config(tmp_path, list("abcd"), ["x"] * 9))
    one_line(
        caught,
        "held_out: expected at least 2 prompts for evaluation, got 1 in",
        "8 more are repeated",
    )


def test_held_out_texts_that_are_trained_on_are_counted_and_said(tmp_path: Path) -> None:
    some = config(
        tmp_path, ["", *"abcdea"], ["x", " b ", "y", "b", "z", "e"], **{"rewards": "[{name: jpeg}]"}
    )
    assert list(prompts.shared(*prompts.lists(some))) == [False, True, False, False, True]
    prompt_check.check(some)
    assert prompt_check.notes(some) == [
        f"prompts: 1 repeated and 1 blank or null prompts left out of {tmp_path / 'train.txt'}",
        f"held_out: 1 repeated and 0 blank or null prompts left out of {tmp_path / 'held.txt'}",
        "2 of 5 held-out prompts are trained on too: their scores say nothing of unseen prompts",
    ]
    assert prompt_check.notes(config(tmp_path, list("abcde"), "split:2")) == []
    assert prompt_check.notes(quickstart()) == []


def test_held_out_texts_that_are_all_trained_on_are_refused(tmp_path: Path) -> None:
    for held_out in (list("dcba"), ["a", "a", "c"]):
        with pytest.raises(UserError) as caught:
            prompts.lists(config(tmp_path, list("abcde"), held_out))
        one_line(
            caught,
            "held_out: expected texts that are not trained on",
            str(tmp_path / "held.txt"),
            f"all its {len(set(held_out))}",
            "split:N",
        )
    with pytest.raises(UserError) as caught:  # all that evaluation takes
        prompt_check.check(config(tmp_path, list("abcde"), ["a", "c", "x", "y"]))
    one_line(
        caught,
        "held_out: expected texts that are not trained on",
        "the first 2, which evaluation takes",
    )


def test_overlap_is_found_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "PART", 7)
    draw = np.random.default_rng(0)
    for _ in range(50):
        train, held_out = (
            [f"text {number}" for number in draw.choice(60, count, replace=False)]
            for count in (40, 9)
        )
        found = prompts.shared(prompts.Listed.of(train), prompts.Listed.of(held_out))
        assert found.tolist() == [text in train for text in held_out]
