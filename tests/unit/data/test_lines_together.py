"""Lines of JSON that are parsed together are told apart as those that are parsed one by one, and
what is wrong with one is told with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from branchgrpo.data import files, json_files, prompts
from branchgrpo.data.json_files import together
from branchgrpo.data.records import detail_of, details_of, digest_of, digests_of, sample_of
from branchgrpo.errors import UserError

PLAIN: list[list[Any]] = [
    [
        {"prompt": f" {index} é ", "id": index, "topic": "a", "count": index % 3}
        for index in range(9)
    ],
    [{"count": index % 2, "Captions": f"{index}\u2028x"} for index in range(5)],
    [{"text": "alone"}, {"text": "]"}],
    [{"prompt": "x", "tag": "a", "include": [{"class": "bench", "count": 1}, [2]]}] * 3,
    [{"prompt": "x", "n": 1.5, "flag": True, "other": {"b": 1, "a": 2}}],
]
"""Rows of the same keys, with nothing to look at closer."""

UNLIKE: list[list[Any]] = [
    [{"prompt": "x"}, {"prompt": "y", "n": 1}],
    [{"prompt": "x", "n": 1}, {"prompt": "y", "m": 1}],
    [{"prompt": "x", "n": None}],
    [{"prompt": "x", "id": [1]}],
]
"""Rows whose metadata are looked at one by one, where they are wanted."""

OTHERS: list[list[Any]] = [
    [{"prompt": "  "}],
    [{"prompt": 3}],
    [{"prompt": "x"}, {"text": "y"}],
    [{"prompt": "x"}, {"n": 1}],
    [{"prompt": "x", "negative_prompt": "y"}],
    [{"prompt": "x", "image": "a.png"}],
    [{"prompt": "", "text": "y"}],
    ["a string"],
    [{"other": 1}],
]
"""Rows that are read one by one."""


@pytest.mark.parametrize("rows", PLAIN)
@pytest.mark.parametrize("ascii_alone", [False, True])
def test_marks_are_those_of_the_records(rows: list[Any], ascii_alone: bool, tmp_path: Path) -> None:
    lines = [json.dumps(row, ensure_ascii=ascii_alone) for row in rows]
    samples = [sample_of(row, tmp_path) for row in rows]
    assert together(lines) == rows
    assert digests_of(rows) == [digest_of(one) for one in samples if one]
    assert details_of(rows) == [detail_of(one) for one in samples if one]
    compact = [json.dumps(row, separators=(",", ":")) for row in rows]
    assert together(compact) in (rows, None)


@pytest.mark.parametrize("rows", UNLIKE)
def test_metadata_of_unlike_rows_is_looked_at_one_by_one(rows: list[Any], tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in rows]
    samples = [one for row in rows if (one := sample_of(row, tmp_path))]
    assert together(lines) == rows
    assert digests_of(rows) == list(map(digest_of, samples))
    assert details_of(rows) is None
    path = tmp_path / "list.jsonl"
    path.write_text("\n".join(lines))
    found = json_files.JsonLineFile("prompts", path)
    assert found.details(np.arange(len(rows))).tolist() == list(map(detail_of, samples))


@pytest.mark.parametrize("rows", OTHERS)
def test_other_rows_are_looked_at_one_by_one(rows: list[Any]) -> None:
    found = together([json.dumps(row) for row in rows])
    assert found is None or digests_of(found) is None


@pytest.mark.parametrize(
    "lines",
    [
        ['{"prompt": "a\\u0000"}'],
        ['{"prompt": "\\ud800"}'],
        ['{"prompt": "x", "n": [[1', "2]]}"],
        ['{"prompt": "x", "n": [[1', "2]]}", '{"prompt": "y", "n": 0}],[{"prompt": "z", "n": 0}'],
        [
            '{"prompt": "x", "n": 0} ] , [ {"prompt": "y", "n": 0}',
            '{"prompt": "x", "n": [[1',
            "2]]}",
        ],
        ['{"prompt": "x"}, {"prompt": "y"}'],
        ['{"prompt": "x"', "}"],
        ['{"prompt": "x"}, {"prompt": "y"}', '{"prompt": "}', '{", "n": 1}'],
        ['{"prompt": "x"}, {"prompt": "y"}', '{"prompt": "x"', '"n": 1}'],
        ['{"prompt": "x"}, {"prompt": "y"}', '{"prompt": "x", "n":', '{"prompt": "z"}}'],
        ["[" * 5000],
        [""],
        ['{"prompt": "x"}', ""],
    ],
)
def test_lines_that_are_not_whole_never_pass_together(lines: list[str], tmp_path: Path) -> None:
    assert together(lines) is None


def test_a_wrong_line_among_many_is_named(tmp_path: Path) -> None:
    path, count = tmp_path / "list.jsonl", 2 * files.TOGETHER + 5
    rows = [json.dumps({"prompt": f"{index}", "n": index}) for index in range(count)]
    path.write_text("\n".join(rows))
    found = prompts.read("prompts", str(path))
    assert [sample.prompt for sample in found] == list(map(str, range(count)))
    assert found.has_metadata
    some = np.arange(0, count, 3)
    wanted = [detail_of(found[index]) for index in some.tolist()]
    assert found.details(some).tolist() == wanted
    rows[files.TOGETHER + 3] = '{"prompt": "x", "n": [[1'
    path.write_text("\n".join(rows))
    with pytest.raises(UserError, match=f"at line {files.TOGETHER + 4} of .*not JSON"):
        prompts.read("prompts", str(path))


def test_what_differs_in_metadata_alone_is_told_apart() -> None:
    values: list[Any] = [1, 2, "1", [1], [2], {"a": 1}, {"a": 2}, True, 1.5, 1.0, -1, -2, 0, False]
    rows = [{"prompt": "x", "n": value} for value in values]
    marks = [details_of([row]) for row in rows]
    assert all(marks) and len({repr(one) for one in marks}) == len(values)
    assert details_of([{"prompt": "x", "a": 1, "b": {"c": 1, "d": 2}}]) == details_of(
        [{"b": {"d": 2, "c": 1}, "a": 1, "prompt": "x"}]
    )
