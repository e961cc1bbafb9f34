"""Prompts that a reward cannot score, found before anything starts; and what `branchgrpo prompts`
shows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from support.prompt_checks import one_line
from support.small_trees import quickstart

from branchgrpo.app.main import main
from branchgrpo.data import check as prompt_check
from branchgrpo.errors import UserError
from branchgrpo.rewards import ocr_targets

TARGET = '"([^"]+)"'
FEW = {"evaluation.prompts": "2", "evaluation.prompts_between": "2"}


def keys(tmp_path: Path, train: list[str], held_out: list[str], **reward: Any) -> dict[str, str]:
    (tmp_path / "train.txt").write_text("\n".join(train))
    (tmp_path / "held.txt").write_text("\n".join(held_out))
    lists = {"prompts": str(tmp_path / "train.txt"), "held_out": str(tmp_path / "held.txt")}
    return lists | FEW | {"rewards": json.dumps([{"name": "jpeg"}, {"name": "ocr", **reward}])}


def words(count: int) -> list[str]:
    return [f'A sign "W{number}" on a wall' for number in range(count)]


HELD_OUT = ['A door that says "NO"', 'A door that says "GO"', 'A door that says "ON"']


def test_a_character_that_the_recogniser_does_not_know_is_found_with_its_line(
    tmp_path: Path,
) -> None:
    train = [*words(9), "", 'A menu with "naïve" on it', 'The "łódź" key']
    with pytest.raises(UserError) as caught:
        prompt_check.check(quickstart(keys(tmp_path, train, HELD_OUT, target=TARGET)))
    one_line(
        caught,
        "rewards.1 (ocr): ",
        "got 2 of prompts with a character",
        f"{tmp_path / 'train.txt'}, line 11: 'ï' in 'naïve'; line 12: 'ł', 'ź' in 'łódź'",
    )
    prompt_check.check(
        quickstart(keys(tmp_path, train, HELD_OUT, target=TARGET, train_on="edit", report=["edit"]))
    )


def test_held_out_prompts_are_checked_too_and_three_are_named(tmp_path: Path) -> None:
    held_out = [
        *HELD_OUT,
        *(f"a {colour} circle" for colour in ("red", "blue", "green", "grey", "x" * 200)),
    ]
    with pytest.raises(UserError) as caught:
        prompt_check.check(quickstart(keys(tmp_path, words(9), held_out)))
    one_line(
        caught,
        f"got 5 of held_out with {ocr_targets.NO_TEXT} ({tmp_path / 'held.txt'}, line 4: 'a "
        "red circle'; line 5: 'a blue circle'; line 6: ",
    )
    assert "line 7" not in str(caught.value)


def test_each_kind_is_counted_by_itself(tmp_path: Path) -> None:
    train = [
        *words(4),
        'a "naïve" fox',
        "a fox",
        'a "𝔘" fox',
        'a "very long sign on the wall"',
        'a "b "c" d"',
        'a " " fox',
        "a 'sly' fox",
    ]
    config = quickstart(keys(tmp_path, train, HELD_OUT))
    found = {
        one.kind: (one.count, one.first[0][0])
        for one in prompt_check.refused(config, "prompts", prompt_check.prompts.lists(config)[0])
    }
    kinds = (
        ocr_targets.UNKNOWN,
        ocr_targets.NO_TEXT,
        ocr_targets.TOO_LONG,
        ocr_targets.NESTED,
        ocr_targets.EMPTY,
        ocr_targets.OTHER_QUOTES,
    )
    assert found == dict(
        zip(kinds, [(2, 5), (1, 6), (1, 8), (1, 9), (1, 10), (1, 11)], strict=True)
    )
    with pytest.raises(UserError, match=r"branchgrpo prompts shows 5 more of such faults"):
        prompt_check.check(config)


# ---- the command


def command(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: dict[str, str],
    *more: str,
) -> tuple[int, str]:
    given = {"evaluation.rewards": "[]", **given}
    options = [part for key, value in given.items() for part in (f"--{key}", value)]
    monkeypatch.setattr(sys, "argv", ["run.py", "prompts", *more, *options])
    monkeypatch.setenv("COLUMNS", "100")
    code = main()
    return code, capsys.readouterr().out


def test_the_command_shows_what_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = keys(
        tmp_path,
        [*words(30), "", words(1)[0], '  "a fairly long one, but short enough" '],
        ['"NO"', words(5)[4]],
        train_on="edit",
        report=["edit"],
    )
    code, out = command(monkeypatch, capsys, given, "--json")
    found = json.loads(out)
    assert code == 0 and found["usable"] and found["problems"] == [] and found["overlap"] == 1
    train = found["prompts"]
    assert {
        name: train[name] for name in ("format", "prompts", "blank", "repeated", "refused")
    } == {"format": "text", "prompts": 31, "blank": 1, "repeated": 1, "refused": []}
    assert train["longest"] == {
        "characters": 37,
        "line": 33,
        "text": '"a fairly long one, but short enough"',
    }
    assert len(train["examples"]) == 10 and train["examples"][0] == {"line": 2, "text": words(2)[1]}
    code, out = command(monkeypatch, capsys, given)
    assert code == 0 and max(map(len, out.splitlines())) <= 100
    for text in (
        "31 different; left out: 1 repeated, 1 blank or null",
        "1 of 2 held-out prompts are trained on too",
        "37 characters, line 33",
    ):
        assert text in out


def test_the_command_shows_all_that_rewards_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = keys(tmp_path, [*words(4), "a fox", 'a "naïve" fox'], [*HELD_OUT, "a hare"])
    code, out = command(monkeypatch, capsys, given, "--json")
    found = json.loads(out)
    assert code == 2 and not found["usable"]
    assert [
        (one["kind"], one["count"], one["first"][0]["line"]) for one in found["prompts"]["refused"]
    ] == [(ocr_targets.NO_TEXT, 1, 5), (ocr_targets.UNKNOWN, 1, 6)]
    assert [one["count"] for one in found["held_out"]["refused"]] == [1]
    code, out = command(monkeypatch, capsys, given)
    assert code == 2 and "line 6: 'ï' in 'naïve'" in out and "line 4: 'a hare'" in out


@pytest.mark.parametrize(
    ("change", "reason", "read"),
    [
        ({"prompts": "no/such.txt"}, "found none at no/such.txt", "held_out"),
        ({"held_out": "no/such.tar"}, "found none at no/such.tar", "prompts"),
        ({"held_out": "split:99"}, "expected split:N with N from 1 to 8", "prompts"),
        ({"rollout.prompts": "10"}, "rollout.prompts: expected at most 9", "held_out"),
        ({"evaluation.prompts": "4"}, "held_out: expected at least 4 prompts", "prompts"),
        ({"held_out": "PROMPTS"}, "held_out: expected texts that are not trained on", "held_out"),
    ],
)
def test_the_command_tells_what_no_run_could_use(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str],
    reason: str,
    read: str,
) -> None:
    given = keys(tmp_path, words(9), HELD_OUT)
    given |= {
        key: given["prompts"] if value == "PROMPTS" else value for key, value in change.items()
    }
    code, out = command(monkeypatch, capsys, given, "--json")
    found = json.loads(out)
    assert (
        code == 2
        and len(found["problems"]) == 1
        and reason in found["problems"][0]
        and found[read]["prompts"] in (3, 9)
    )
    code, out = command(monkeypatch, capsys, given)
    assert code == 2 and "error: " in out
