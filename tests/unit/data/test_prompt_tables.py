"""CSV and TSV against Python's own writer, files in gzip, and files that are no text."""

from __future__ import annotations

import csv
import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from support.prompt_checks import one_line

from branchgrpo.data import files as prompt_files
from branchgrpo.data import prompts
from branchgrpo.data.lists import Prompts
from branchgrpo.data.records import prompts_of
from branchgrpo.errors import UserError


def read(path: Path, data: str | bytes) -> Prompts:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return prompts.read("prompts", str(path))


# ---- columns


@pytest.mark.parametrize(
    ("suffix", "between"), [("csv", ","), ("tsv", "\t"), ("CSV", ","), ("csv.gz", ",")]
)
@pytest.mark.parametrize("head", ["Prompt", "Prompts", "text", "CAPTIONS", " prompt "])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_the_column_of_prompts_is_read(
    tmp_path: Path, suffix: str, between: str, head: str, bom: str
) -> None:
    rows = [
        ["Category", head, "Note"],
        ["Arts", "a red fox, asleep", ""],
        ["Arts", 'a "wide"\tsea', "x"],
        ["", "two\nlines", ""],
        ["Maps", "猫", ""],
    ]
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=between).writerows(rows)
    data = (bom + file.getvalue()).encode()
    found = read(
        tmp_path / f"list.{suffix}", gzip.compress(data) if suffix.endswith("gz") else data
    )
    assert (
        prompts_of(found)
        == [found[place].prompt for place in range(4)]
        == [row[1] for row in rows[1:]]
    )
    assert [found.number(place) for place in range(4)] == [2, 3, 4, 6] and found.unit == "line"
    assert (found.blank, found.repeated) == (0, 0)


CELLS = st.text("a,b\"' \té\n\r", max_size=6)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=8),
    st.sampled_from([("csv", ","), ("tsv", "\t")]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_cells_are_those_that_were_written(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str]],
    kind: tuple[str, str],
    end: str,
) -> None:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=kind[1], lineterminator=end, quoting=csv.QUOTE_ALL).writerows(
        [("id", "prompt"), *rows]
    )
    expected = {text.strip(): text for _, text in reversed(rows) if text.strip()}
    path = tmp_path_factory.mktemp("cells") / f"list.{kind[0]}"
    if not expected:
        with pytest.raises(UserError, match=f"found none .*{len(rows)} blank or null left out"):
            read(path, file.getvalue())
        return
    found = read(path, file.getvalue())
    assert prompts_of(found) == [
        text
        for text in dict.fromkeys(text.strip() for _, text in rows if text.strip())
        for text in [expected[text]]
    ]
    assert found.blank == sum(not text.strip() for _, text in rows)


def test_the_first_cell_with_text_counts(tmp_path: Path) -> None:
    data = "caption,id,Prompt,text\nno,1,a,\nb,2,,\nc,3, ,\t\n,4,,d\n,5,,\n\n,6\n"
    found = read(tmp_path / "list.csv", data)
    assert prompts_of(found) == ["a", "b", "c", "d"] and found.blank == 3
    assert [found.number(place) for place in range(4)] == [2, 3, 4, 5]
    columns = {
        "caption": ["no", "b", None, None],
        "Prompt": ["a", None, " ", ""],
        "texts": [None, "", "c", None],
        "id": [1, 2, 3, 4],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "list.parquet")
    found = prompts.read("prompts", str(tmp_path / "list.parquet"))
    assert (
        prompts_of(found) == ["a", "b", "c"]
        and found.blank == 1
        and found.number(2) == 3
        and found.unit == "row"
    )


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        (
            "list.csv",
            "title,id\na,1\n",
            ["expected a column prompt, text or caption in the first line", "'title', 'id'"],
        ),
        ("list.csv", "Prompt;Category\na;b\n", ["separated by commas", "'Prompt;Category'"]),
        ("list.csv", "a cat\na dog\n", ["expected a column", "'a cat'"]),
        (
            "list.csv",
            "prompt,id\na fox, asleep,1\n",
            ["line 2 of", "3 cells, where the header has 2"],
        ),
        ("list.csv", 'prompt,id\n"a",1\n"b" c,2\n', ["line 3 of", "separated by commas"]),
        ("list.csv", 'prompt,id\na,1\n"b,2\nc,3\n', ["line 3 of", "separated by commas"]),
        ("list.csv", b"prompt,id\na,1\n\xff,2\n", ["line 3 of", "not UTF-8"]),
        ("list.tsv", "prompt\tid\na\t1\nb\0\t2\n", ["a NUL"]),
        ("list.csv", "prompt,id\n,1\n , \n", ["found none", "2 blank or null left out"]),
        (
            "list.jsonl",
            '{"id": 1}\n{"image": "x", "id": 2}\n',
            [
                "found none",
                "2 blank or null",
                "expected prompt, text or caption",
                "an object with 'id'",
            ],
        ),
        (
            "list.json",
            '[{"id": 1}, null]',
            ["found none", "2 blank or null", "an object with 'id'"],
        ),
    ],
)
def test_tables_without_prompts_are_one_line(
    tmp_path: Path, name: str, data: str | bytes, words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path / name, data)
    one_line(caught, "prompts: expected", str(tmp_path / name), *words)


def test_quotes_of_a_tsv_that_do_not_pair_are_characters(tmp_path: Path) -> None:
    texts = ['"Stop" on a sign', 'a 5" pipe', '"half']
    assert (
        prompts_of(
            read(
                tmp_path / "list.tsv",
                "Prompt\tCategory\n" + "".join(f"{text}\tArts\n" for text in texts),
            )
        )
        == texts
    )


def test_a_cell_longer_than_any_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_files, "LONGEST", 64)
    with pytest.raises(UserError) as caught:
        read(tmp_path / "list.csv", "prompt\na\n" + "x" * 65 + "\n")
    one_line(caught, "line 3 of", "longer than 64")


# ---- gzip


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("list.txt.gz", "a\n\nb\n"),
        ("list.gz", "a\n\nb\n"),
        ("list.jsonl.gz", '"a"\n{"text": null}\n"b"'),
        ("list.json.gz", '["a", null, "b"]'),
        ("list.ndjson.GZ", '"a"\n\n"b"\n'),
        ("list.tsv.gz", "prompt\tid\na\t1\n\t2\nb\t3\n"),
    ],
)
def test_text_in_gzip_is_read(tmp_path: Path, name: str, data: str) -> None:
    found = read(tmp_path / name, gzip.compress(data.encode()))
    assert (prompts_of(found), found[1].prompt, found.blank, found.source) == (
        ["a", "b"],
        "b",
        1,
        str(tmp_path / name),
    )
    assert found.number(1) == (4 if "tsv" in name else 3)


@pytest.mark.parametrize("name", ["list.txt.gz", "list.csv.gz", "list.json.gz"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-9],
        lambda data: data[:20] + b"\xff" * 8 + data[28:],
        lambda data: b"plain text",
    ],
    ids=["truncated", "overwritten", "never packed"],
)
def test_damaged_gzip_is_one_line(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    with pytest.raises(UserError) as caught:
        read(
            tmp_path / name,
            damage(
                gzip.compress(
                    b"prompt\n"
                    + b"".join(b"a fox %d\n" % (number * number) for number in range(99))
                )
            ),
        )
    one_line(caught, "prompts: expected", str(tmp_path / name))


# ---- what is no text


def archive() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("00000.txt"), io.BytesIO())
    return made.getvalue()


@pytest.mark.parametrize(
    "name",
    ["captions.tar", "captions.tar.gz", "list.yaml", "list.parquet.gz", "list.xlsx", "list.v2"],
)
def test_unknown_suffixes_are_refused_with_those_that_are_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path / name, "a fox\n")
    one_line(
        caught,
        "prompts: expected a file that ends in .txt",
        ".jsonl",
        ".csv, .tsv",
        ".parquet",
        f"got {tmp_path / name}",
    )


@pytest.mark.parametrize(
    "name", ["list.txt", "list", "list.jsonl", "list.json", "list.csv", "list.txt.gz"]
)
@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("prompt\na fox\n".encode("utf-16"), "UTF-16: save as UTF-8"),
        ("prompt\na fox\n".encode("utf-16-le"), "UTF-16: save as UTF-8"),
        ("prompt\na fox\n".encode("utf-16-be"), "UTF-16: save as UTF-8"),
        ("prompt\na fox\n".encode("utf-32"), "UTF-32: save as UTF-8"),
        (archive(), "a tar archive"),
        (b"PK\x03\x04rest", "a zip archive"),
        (b"PAR1rest", "parquet data"),
        (b"prompt\na b\0c\n", "a NUL at byte 11"),
    ],
    ids=[
        "UTF-16 with a mark",
        "UTF-16",
        "UTF-16, big end first",
        "UTF-32",
        "tar",
        "zip",
        "parquet",
        "NUL",
    ],
)
def test_what_is_no_text_is_told_by_name(
    tmp_path: Path, name: str, data: bytes, words: str
) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path / name, gzip.compress(data) if name.endswith("gz") else data)
    one_line(caught, "prompts: expected", str(tmp_path / name), words)


@pytest.mark.parametrize("block", [16, 1 << 20])
def test_a_nul_far_behind_the_beginning_is_found_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(prompt_files, "BLOCK", block)
    with pytest.raises(UserError) as caught:
        read(tmp_path / "list.txt", "a red fox\r\n" * 200 + "b\0c\n")
    one_line(caught, "got at line 201 of", "a NUL")


# ---- places


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", " ", "a", "b", "cé"]), st.sampled_from(["\n", "\r\n", "\r"])
        ),
        min_size=1,
        max_size=30,
    ),
    st.integers(1, 9),
)
def test_lines_are_numbered_and_counted_as_an_editor_does(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, str]], block: int
) -> None:
    data = "start\n" + "".join(text + end for text, end in lines)
    editor = io.StringIO(data, newline=None).read().split("\n")[:-1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompt_files, "BLOCK", block)
        found = read(tmp_path_factory.mktemp("numbers") / "list.txt", data)
        assert [found.number(place) for place in range(len(found))] == [
            editor.index(text) + 1 for text in prompts_of(found)
        ]
        assert found.blank == sum(not text.strip() for text in editor)
        assert found.repeated == len(editor) - found.blank - len(found)
