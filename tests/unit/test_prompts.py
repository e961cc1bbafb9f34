"""Prompt lists: what is read, and in which order it is dealt."""

from __future__ import annotations

from pathlib import Path

import pytest

from branchgrpo import prompts
from branchgrpo.errors import UserError


def test_blank_lines_and_margins_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("  one \n\n\ttwo é\n   \nthree", encoding="utf-8")
    assert prompts.read("prompts", str(path)) == ["one", "two é", "three"]


def test_embedded_lists_share_no_prompt() -> None:
    train, held_out = prompts.read("prompts", "embedded:train"), prompts.read("held_out", "embedded:heldout")
    assert train and held_out and not set(train) & set(held_out)


@pytest.mark.parametrize("what", ["missing", "not UTF-8", "empty", "blank", "folder", "embedded"])
def test_read_errors_are_one_line_that_names_the_key(tmp_path: Path, what: str) -> None:
    path = tmp_path / "list.txt"
    if what == "folder":
        path.mkdir()
    elif what != "missing":
        path.write_bytes({"not UTF-8": b"\xff\xfe\x00a", "blank": b"\n  \n"}.get(what, b""))
    source = "embedded:no-such-list" if what == "embedded" else str(path)
    with pytest.raises(UserError) as caught:
        prompts.read("held_out", source)
    assert str(caught.value).startswith("held_out: expected")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("count", "batch"), [(10, 3), (12, 4), (5, 5), (7, 1), (9, 8)])
def test_every_epoch_deals_different_prompts(count: int, batch: int) -> None:
    per_epoch = count // batch
    for epoch in range(4):
        dealt = [index for place in range(per_epoch) for index in prompts.deal(count, batch, epoch * per_epoch + place, 3)]
        assert len(dealt) == len(set(dealt)) == per_epoch * batch
        assert set(dealt) <= set(range(count))


def test_dealing_depends_on_position_and_seed_alone() -> None:
    forwards = [prompts.deal(50, 4, i, 1) for i in range(40)]
    assert [prompts.deal(50, 4, i, 1) for i in reversed(range(40))] == forwards[::-1]
    assert [prompts.deal(50, 4, i, 2) for i in range(40)] != forwards
    assert forwards[:12] != forwards[12:24]  # epochs are shuffled anew


def test_what_is_left_over_changes_between_epochs() -> None:
    seen = {index for i in range(60) for index in prompts.deal(7, 3, i, 0)}
    assert seen == set(range(7))


def test_a_batch_larger_than_the_list() -> None:
    with pytest.raises(UserError, match=r"rollout\.prompts: expected at most 3, .* got 4") as caught:
        prompts.deal(3, 4, 0, 0)
    assert "\n" not in str(caught.value)
