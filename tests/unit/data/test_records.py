"""What becomes of the rows of prompt files, in every format; which of them are the same."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from support.prompt_checks import one_line

from branchgrpo.data import prompts
from branchgrpo.data.lists import Listed
from branchgrpo.data.records import detail_of, digest_of, row_of
from branchgrpo.data.shards import digest
from branchgrpo.errors import UserError
from branchgrpo.types import Picture, Sample

ROWS: list[dict[str, Any]] = [
    {
        "prompt": " a red fox ",
        "Id": "fox-1",
        "negative_prompt": "a wolf",
        "image": "pictures/fox.png",
        "caption": "kept",
        "count": 2,
    },
    {"prompt": "a sea", "Id": 7, "negative_prompt": None, "image": None, "caption": "", "count": 0},
    {"prompt": " ", "Id": "3", "caption": "a hill"},
    {"prompt": None, "Id": "4", "count": 5},
]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows in the format of the file's name."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        table = {key: [row.get(key) for row in rows] for key in keys}
        table = {
            key: values if key == "count" else [None if one is None else str(one) for one in values]
            for key, values in table.items()
        }
        parquet.write_table(pyarrow.table(table), path)
    else:
        between = "," if path.suffix == ".csv" else "\t"
        cells = [["" if row.get(key) is None else str(row[key]) for key in keys] for row in rows]
        path.write_text("".join(between.join(row) + "\n" for row in [keys, *cells]))
    return path


def read(path: Path) -> list[Sample]:
    return list(prompts.read("prompts", str(path)))


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_rows_are_records(tmp_path: Path, suffix: str) -> None:
    """Numbers stay numbers where a format has them; what is null or blank is left out, but of
    JSON's texts."""
    found = read(written(tmp_path / f"list.{suffix}", ROWS))
    texts, blank = suffix in ("csv", "tsv"), suffix in ("jsonl", "json", "parquet")
    assert found == [
        Sample(
            prompt=" a red fox ",
            id="fox-1",
            negative_prompt="a wolf",
            images=(Picture(str(tmp_path / "pictures" / "fox.png")),),
            metadata={"caption": "kept", "count": "2" if texts else 2},
        ),
        Sample(
            prompt="a sea",
            id="7",
            metadata=({"caption": ""} if blank else {}) | {"count": "0" if texts else 0},
        ),
        Sample(prompt="a hill", id="3", metadata={"prompt": " "} if blank else {}),
    ]


def test_lines_of_text_stand_alone(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text('a fox\n{"prompt": "b"}\n')
    assert read(tmp_path / "list.txt") == [Sample(prompt="a fox"), Sample(prompt='{"prompt": "b"}')]


def test_values_of_other_kinds_are_metadata(tmp_path: Path) -> None:
    """What names no record, picture or text stays as it is; any JSON."""
    deep = {"objects": [{"class": "cat", "count": 2}], "seed": None, "猫": 1.5}
    row = {"prompt": "a", "id": 1.5, "images": [{"url": "x"}], "negative_prompt": ["b"]} | deep
    (found,) = read(written(tmp_path / "list.jsonl", [row]))
    kept = {key: value for key, value in row.items() if key not in ("prompt", "seed")}
    assert found == Sample(prompt="a", metadata=kept)


def test_paths_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the file's folder, unless they are absolute or of a home."""
    monkeypatch.setenv("HOME", "/home/me")
    given = ["a.png", "../b.png", "/c/d.png", "~/e.png", "~no-such-user/f.png"]
    (found,) = read(written(tmp_path / "list.json", [{"text": "a", "images": given}]))
    assert [picture.path for picture in found.images] == [
        f"{tmp_path}/a.png",
        f"{tmp_path}/../b.png",
        "/c/d.png",
        "/home/me/e.png",
        f"{tmp_path}/~no-such-user/f.png",
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"prompt": "a", "note": "\\ud800"}', "surrogates not allowed"),
        ('{"prompt": "a", "\\udc00": 1}', "surrogates not allowed"),
        ('{"prompt": "a", "negative_prompt": "b\\u0000"}', "a NUL"),
        ('{"prompt": "a", "image": "b\\u0000.png"}', "a NUL"),
    ],
)
def test_text_that_is_none_is_one_line(tmp_path: Path, row: str, reason: str) -> None:
    for name, data in (("list.jsonl", f'"b"\n{row}\n'), ("list.json", f'["b", {row}]')):
        (tmp_path / name).write_text(data)
        with pytest.raises(UserError) as caught:
            read(tmp_path / name)
        one_line(caught, "prompts: expected", str(tmp_path / name), reason)


def test_dates_of_parquet_are_iso_text(tmp_path: Path) -> None:
    table = pyarrow.table({"text": ["a"], "day": [date(2024, 2, 29)], "size": [[1, 2]]})
    parquet.write_table(table, tmp_path / "list.parquet")
    (found,) = read(tmp_path / "list.parquet")
    assert found.metadata == {"day": "2024-02-29", "size": [1, 2]}


def test_a_record_is_a_row_again(tmp_path: Path) -> None:
    *first, last = read(written(tmp_path / "list.jsonl", ROWS))
    assert read(written(tmp_path / "again.jsonl", [row_of(one) for one in first])) == first
    assert row_of(last) == {"prompt": "a hill", "id": "3"}


# ---- which are the same

SAMPLES = st.builds(
    Sample,
    prompt=st.sampled_from(["a", "b", " a "]),
    id=st.sampled_from(["", "1", "2"]),
    negative_prompt=st.sampled_from(["", "x"]),
    images=st.sampled_from([(), (Picture("p.png"),)]),
    metadata=st.sampled_from([{}, {"n": 1}, {"n": 2}, {"m": 1, "n": 1}]),
)


def shown(sample: Sample) -> tuple[Any, ...]:
    """What models see of it."""
    return sample.prompt.strip(), sample.negative_prompt.strip(), sample.images


def key(sample: Sample) -> tuple[Any, ...]:
    return *shown(sample), json.dumps(sample.metadata, sort_keys=True)


@settings(max_examples=300, deadline=None)
@given(st.lists(SAMPLES, max_size=12))
def test_what_differs_in_metadata_is_another_record(samples: list[Sample]) -> None:
    wanted: dict[Any, Sample] = {}
    for sample in samples:
        wanted.setdefault(key(sample), sample)
    found = prompts.distinct(Listed(samples))
    assert list(found) == list(wanted.values())
    assert found.repeated == len(samples) - len(wanted)


@settings(max_examples=200, deadline=None)
@given(st.lists(SAMPLES, min_size=2, max_size=12), st.integers(0, 3), st.data())
def test_a_split_keeps_a_prompt_on_one_side(
    samples: list[Sample], seed: int, data: st.DataObject
) -> None:
    different = list({key(sample): sample for sample in reversed(samples)}.values())[::-1]
    count = data.draw(st.integers(1, max(1, len(different) - 1)))
    if len(different) == 1 or len({*map(shown, different)}) == 1:
        with pytest.raises(UserError, match="expected split:N"):
            prompts.split(Listed(samples), count, seed)
        return
    try:
        train, held_out = prompts.split(Listed(samples), count, seed)
    except UserError as error:  # nothing is left
        assert "that leaves prompts to train on" in str(error)
        return
    assert len(held_out) == count == len({*map(key, held_out)})
    taken = {*map(shown, held_out)}
    assert [key(one) for one in train] == [
        key(one) for one in prompts.distinct(Listed(samples)) if shown(one) not in taken
    ]


def test_overlap_goes_by_what_models_see() -> None:
    train = Listed([Sample(prompt="a", metadata={"n": 1}), Sample(prompt="b")])
    held_out = [
        Sample(prompt="a"),
        Sample(prompt="a", id="9", metadata={"n": 2}),
        Sample(prompt="b", negative_prompt="x"),
        Sample(prompt="b", images=(Picture("p.png"),)),
    ]
    assert prompts.shared(train, Listed(held_out)).tolist() == [True, True, False, False]


def test_files_keep_digests_and_details_of_their_records(tmp_path: Path) -> None:
    """Also where the first of them have no metadata, and where no record has any."""
    rows = [{"prompt": "a"}, {"prompt": "b", "n": 1}, {"prompt": "b", "n": 2}, {"prompt": "c"}]
    for suffix in ("jsonl", "json", "csv", "parquet"):
        found = prompts.read("prompts", str(written(tmp_path / f"list.{suffix}", rows)))
        assert found.digests.tolist() == [digest_of(sample) for sample in found]
        assert found.has_metadata
        details = found.details(np.arange(len(found))).tolist()
        assert details == [detail_of(sample) for sample in found]
        assert [bool(one) for one in details] == [False, True, True, False], suffix
        alone = prompts.read("prompts", str(written(tmp_path / f"alone.{suffix}", rows[:1])))
        assert not alone.has_metadata


def test_an_encoding_is_named_by_what_is_in_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"one")
    (tmp_path / "b.png").write_bytes(b"two")
    sample = Sample(prompt="a", images=(Picture(str(tmp_path / "a.png")),))
    same = replace(sample, images=(Picture("elsewhere", b"one"),))
    other = replace(sample, images=(Picture(str(tmp_path / "b.png")),))
    twice = replace(sample, images=sample.images * 2)
    assert digest(sample) == digest(same)
    assert len({digest(Sample(prompt="a")), *map(digest, (sample, other, twice))}) == 4
    with pytest.raises(UserError) as caught:
        digest(replace(sample, images=(Picture(str(tmp_path / "none.png")),)))
    one_line(caught, f"prompts: expected a picture at {tmp_path / 'none.png'}, cannot read it")
