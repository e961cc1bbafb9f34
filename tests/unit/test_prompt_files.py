"""Prompt files of every form, against slow readers and the packages that wrote them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from branchgrpo import prompt_files, prompts
from branchgrpo.errors import UserError


def one_line(caught: pytest.ExceptionInfo[UserError], *parts: str) -> None:
    """The message is one line with these parts."""
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text


def universal(data: bytes) -> list[str]:
    """Python's own reading of lines, blank ones included."""
    return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline=None).read().split("\n")


def lines_of(path: Path, data: bytes) -> list[str]:
    """What `read` makes of a text file."""
    path.write_bytes(data)
    found = prompts.read("prompts", str(path))
    texts = [found[index] for index in range(len(found))]
    assert list(found) == texts == found[:]
    return texts


# ---- text


@pytest.mark.parametrize(
    "data",
    [
        "  one \n\n\ttwo é\n   \nthree".encode(),
        b"one\r\ntwo\r\n\r\n three \r\n",
        b"one\rtwo\r\rthree",
        b"\xef\xbb\xbfone\ntwo\n",
        b"\n\n  \none\n\n\n",
        "猫\n\u3000\n\u00a0犬\u00a0\n\x1c\n\x0b\n\x01\n".encode(),
        "a\u2028b\x0bc\x85d\n\ufeffe".encode(),
    ],
    ids=["margins", "CR LF", "CR", "BOM", "blank ends", "Unicode spaces", "no line ends"],
)
def test_lines_are_those_of_python(tmp_path: Path, data: bytes) -> None:
    assert lines_of(tmp_path / "list.txt", data) == [line.strip() for line in universal(data) if line.strip()]


@settings(max_examples=300, deadline=None)
@given(st.text("ab é猫 \t\r\n\u00a0😀", max_size=80), st.integers(1, 20), st.booleans())
def test_blocks_do_not_show(tmp_path_factory: pytest.TempPathFactory, text: str, block: int, bom: bool) -> None:
    data = (b"\xef\xbb\xbf" if bom else b"") + text.encode()
    expected = [line.strip() for line in universal(data) if line.strip()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompt_files, "BLOCK", block)
        path = tmp_path_factory.mktemp("blocks") / "list.txt"
        if expected:
            assert lines_of(path, data) == expected
        else:
            with pytest.raises(UserError, match="found none"):
                lines_of(path, data)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["", " ", "a", "bé", "😀 c"]), st.sampled_from(["\n", "\r\n"])), max_size=12), st.integers(1, 20))
def test_invalid_utf8_is_found_at_the_start_with_its_line(tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, str]], block: int) -> None:
    path = tmp_path_factory.mktemp("bad") / "list.txt"
    path.write_bytes("".join(text + end for text, end in lines).encode() + b"x\xffy\nfine\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompt_files, "BLOCK", block)
        with pytest.raises(UserError) as caught:
            prompts.read("held_out", str(path))
    one_line(caught, "held_out: expected UTF-8 text", f"line {len(lines) + 1} of {path}")


@pytest.mark.parametrize(("length", "fits"), [(64, True), (65, False), (1000, False)])
def test_a_line_longer_than_any_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int, fits: bool) -> None:
    monkeypatch.setattr(prompt_files, "LONGEST", 64)
    for block in (16, 64, 4096):
        monkeypatch.setattr(prompt_files, "BLOCK", block)
        data = b"one\n\ntwo\n" + b"x" * length + b"\nfour\n"
        if fits:
            assert lines_of(tmp_path / f"{block}.txt", data) == ["one", "two", "x" * length, "four"]
            continue
        with pytest.raises(UserError) as caught:
            lines_of(tmp_path / f"{block}.txt", data)
        one_line(caught, "line 4 of", "longer than 64 bytes")


def test_memory_of_a_large_file_is_that_of_its_index(tmp_path: Path) -> None:
    path, count = tmp_path / "large.txt", 200_000
    with path.open("w") as file:
        file.writelines(f"{number:07d} {'word ' * 60}\n" for number in range(count))
    assert path.stat().st_size > 60e6
    tracemalloc.start()
    try:
        found = prompts.read("prompts", str(path))
        for iteration in range(3):
            for index in prompts.deal(len(found), 8, iteration, 0):
                assert found[index].startswith(f"{index:07d} word")
        train, held_out = prompts.split(found, 1000, 0)
        assert len(train) == count - 1000 and held_out[0] and train[0]
        assert sum(1 for _ in found) == count
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 15e6  # 1.6 MB of offsets, 0.8 MB for each shuffled order, a few blocks of 1 MB


def test_a_file_that_changes_is_an_error_and_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("one\ntwo\n")
    found = prompts.read("prompts", str(path))
    assert prompts.read("prompts", str(path)) is found  # not indexed again
    path.write_text("three\nfour\nfive\n")
    for use in (lambda: found[0], lambda: list(found)):
        with pytest.raises(UserError) as caught:
            use()
        one_line(caught, "prompts: expected", str(path), "changed")
    assert list(prompts.read("prompts", str(path))) == ["three", "four", "five"]


def test_a_file_that_is_replaced_goes_on_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("one\ntwo\n")
    found = prompts.read("prompts", str(path))
    (tmp_path / "new").write_text("three\n")
    os.replace(tmp_path / "new", path)
    assert list(found) == [found[0], found[1]] == ["one", "two"]
    assert list(prompts.read("prompts", str(path))) == ["three"]


def test_a_file_is_closed_with_its_prompts(tmp_path: Path) -> None:
    def open_files() -> int:
        return sum(os.path.realpath(entry).startswith(str(tmp_path)) for entry in Path("/proc/self/fd").iterdir())

    for number in range(6):
        (tmp_path / f"{number}.txt").write_text("one\n")
        prompts.read("prompts", str(tmp_path / f"{number}.txt"))
    assert open_files() == 2  # those that are kept for the next to ask


def test_sequence(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a\nb\nc\nd\n")
    found = prompts.read("prompts", str(tmp_path / "list.txt"))
    assert (found[-1], found[np.int64(1)], found[1:3], found[::-2], found[:99]) == ("d", "b", ["b", "c"], ["d", "b"], ["a", "b", "c", "d"])
    assert "c" in found and "e" not in found and found.index("c") == 2
    for index in (4, -5):
        with pytest.raises(IndexError):
            found[index]


def test_embedded_lists_share_no_prompt() -> None:
    train, held_out = prompts.read("prompts", "embedded:train"), prompts.read("held_out", "embedded:heldout")
    assert train and held_out and not set(train) & set(held_out)


# ---- JSON


RECORDS = [
    '"a \\u732b"',
    '{"id": 1, "caption": "b"}',
    '{"caption": "no", "prompt": " c\\nd "}',
    '{"text": "e", "caption": "no"}',
    '""',
    '{"prompt": "  "}',
    '"f"',
]
TEXTS = ["a 猫", "b", " c\nd ", "e", "f"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n \n\n"])
@pytest.mark.parametrize("block", [7, 1 << 20])
def test_json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, block: int) -> None:
    monkeypatch.setattr(prompt_files, "BLOCK", block)
    path = tmp_path / "list.JSONL"
    path.write_bytes(b"\xef\xbb\xbf" + end.join(RECORDS).encode())
    found = prompts.read("prompts", str(path))
    assert list(found) == [found[index] for index in range(len(found))] == TEXTS


@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_json(tmp_path: Path, bom: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(f"{bom}[{','.join(RECORDS)}]", encoding="utf-8")
    assert list(prompts.read("prompts", str(path))) == TEXTS


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ('{"prompt": ', "not JSON"),
        ("plain text", "not JSON"),
        ('{"id": 1, "image": "x"}', "an object with 'id', 'image'"),
        ("{}", "an object with no key"),
        ('{"prompt": 3}', "a number"),
        ('{"prompt": null, "text": "a"}', "null"),
        ("[1, 2]", "a list"),
        ("true", "true or false"),
        ('{"prompt": "\\ud800"}', "surrogate"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_wrong_json_names_its_place(tmp_path: Path, value: str, reason: str) -> None:
    (tmp_path / "list.jsonl").write_text(f'"fine"\n\n{value}\n"fine"\n')
    with pytest.raises(UserError) as caught:
        prompts.read("prompts", str(tmp_path / "list.jsonl"))
    one_line(caught, "prompts: expected a JSON string, or an object with prompt, text or caption", f"line 3 of {tmp_path / 'list.jsonl'}", reason)
    (tmp_path / "list.json").write_text(f'["fine",\n\n{value}]')
    with pytest.raises(UserError) as caught:
        prompts.read("held_out", str(tmp_path / "list.json"))
    place = {"not JSON": "line 3", "nested too deeply": str(tmp_path)}.get(reason, "item 2")
    one_line(caught, "held_out: expected a JSON list", str(tmp_path / "list.json"), place, reason)


@pytest.mark.parametrize(
    ("text", "reason"), [("", "not JSON"), ('{"prompt": "a"}', "an object"), ('"a"', "a string"), ("[]", "found none"), ('[""]', "found none")]
)
def test_json_that_is_no_list_of_prompts(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(UserError) as caught:
        prompts.read("prompts", str(tmp_path / "list.json"))
    one_line(caught, "prompts: expected", str(tmp_path / "list.json"), reason)


# ---- parquet


def table(path: Path, kind: pyarrow.DataType | None = None, column: str = "caption", texts: Iterable[str | None] = (), rows: int = 3) -> list[str | None]:
    """Write a parquet file in row groups of `rows`."""
    found = list(texts) or ["one", None, " two ", "猫", "", " \t", "three", None, None, None, "four"]
    parquet.write_table(pyarrow.table({"image": range(len(found)), column: pyarrow.array(found, pyarrow.string()).cast(kind or pyarrow.string())}), path, rows)
    return found


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())], ids=str)
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_parquet(tmp_path: Path, kind: pyarrow.DataType, rows: int) -> None:
    path = tmp_path / "list.parquet"
    expected = [text for text in table(path, kind, rows=rows) if text and text.strip()]
    assert parquet.ParquetFile(path).num_row_groups == -(-11 // rows)
    found = prompts.read("prompts", str(path))
    assert list(found) == expected == [found[index - 5] for index in range(5)]
    assert [found[index] for index in (4, 0, 3, 1, 2)] == [expected[index] for index in (4, 0, 3, 1, 2)]


def test_parquet_is_in_memory_a_batch_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_files, "COPIED", 1000)
    texts = [f"{number:07d} {'word ' * 100}" for number in range(50_000)]
    table(tmp_path / "list.parquet", texts=texts, rows=50_000)
    tracemalloc.start()
    try:
        found = prompts.read("prompts", str(tmp_path / "list.parquet"))
        assert [found[index] for index in (49_999, 0, 1000, 999)] == [texts[index] for index in (49_999, 0, 1000, 999)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(map(len, texts)) > 25e6
    assert peak < 4e6  # of Python's own memory: 0.4 MB of offsets, 1000 texts thrice


def test_parquet_errors(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    table(path, column="title")
    wrong = {"expected a column prompt, text or caption": path.read_bytes()}
    parquet.write_table(pyarrow.table({"text": [1, 2]}), path)
    wrong["expected text in column text"] = path.read_bytes()
    table(path, texts=[None, ""])
    wrong["found none"] = path.read_bytes()
    table(path)
    wrong["cannot read"] = path.read_bytes()[:-20]
    raw = pyarrow.array([b"fine", b"\xff\xfe"], pyarrow.binary())
    parquet.write_table(pyarrow.table({"text": pyarrow.Array.from_buffers(pyarrow.string(), 2, raw.buffers())}), path)
    wrong["can't decode byte 0xff"] = path.read_bytes()
    for reason, data in wrong.items():
        path.write_bytes(data)
        with pytest.raises(UserError) as caught:
            prompts.read("held_out", str(path))
        one_line(caught, "held_out: expected", str(path), reason)


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(tmp_path / "list.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError) as caught:
        prompts.read("prompts", str(tmp_path / "list.parquet"))
    one_line(caught, "prompts: expected the package pyarrow", "pip install 'branchgrpo[parquet]'")


def test_reading_text_needs_no_heavy_package() -> None:
    code = "import sys; from branchgrpo import prompts; prompts.read('prompts', 'embedded:train'); print(*{'torch', 'pyarrow', 'hpsv2'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split() == []


# ---- HPSv2's benchmark


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """A root folder of hpsv2 with its four files."""
    folder = tmp_path / "datasets" / "benchmark"
    folder.mkdir(parents=True)
    for number, style in enumerate(("photo", "anime", "concept-art", "paintings")):
        (folder / f"{style}.json").write_text(json.dumps([f"{style} {index}, of a café " for index in range(number + 2)]))
    return tmp_path


def package(root: Path, style: str, patch: pytest.MonkeyPatch) -> list[str]:
    """What hpsv2 itself gives, its download left out."""
    hpsv2 = pytest.importorskip("hpsv2")
    patch.setattr(hpsv2, "root_path", str(root))
    patch.setattr(hpsv2.utils, "download_benchmark_prompts", lambda: None)
    found = hpsv2.benchmark_prompts(style)
    return [text for texts in found.values() for text in texts] if style == "all" else found


@pytest.mark.parametrize("style", ["anime", "concept-art", "paintings", "photo", "all"])
@pytest.mark.parametrize("place", ["HPS_ROOT", "home", "Hugging Face"])
def test_hpsv2_benchmark_is_the_package_s(benchmark: Path, monkeypatch: pytest.MonkeyPatch, style: str, place: str) -> None:
    expected = package(benchmark, style, monkeypatch)
    monkeypatch.delenv("HPS_ROOT", raising=False)
    monkeypatch.setenv("HOME", str(benchmark / "home"))
    if place == "HPS_ROOT":
        monkeypatch.setenv("HPS_ROOT", str(benchmark))
    elif place == "home":
        (benchmark / "home" / ".cache").mkdir(parents=True)
        (benchmark / "home" / ".cache" / "hpsv2").symlink_to(benchmark)
    else:
        cache = benchmark / "hub"
        (cache / "datasets--zhwang--HPDv2" / "refs").mkdir(parents=True)
        (cache / "datasets--zhwang--HPDv2" / "refs" / "main").write_text("0123abc")
        (cache / "datasets--zhwang--HPDv2" / "snapshots" / "0123abc").mkdir(parents=True)
        (benchmark / "datasets" / "benchmark").rename(cache / "datasets--zhwang--HPDv2" / "snapshots" / "0123abc" / "benchmark")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    assert list(prompts.read("held_out", f"hpsv2:{style}")) == expected


def test_hpsv2_errors(benchmark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(benchmark / "hub"))
    monkeypatch.setenv("HPS_ROOT", str(benchmark))
    with pytest.raises(UserError) as caught:
        prompts.read("prompts", "hpsv2:manga")
    one_line(caught, "prompts: expected hpsv2:STYLE with STYLE one of anime, concept-art, paintings, photo, all, got hpsv2:manga")
    file = benchmark / "datasets" / "benchmark" / "photo.json"
    file.write_text("[")
    with pytest.raises(UserError) as caught:
        prompts.read("prompts", "hpsv2:all")
    one_line(caught, "prompts: expected", "not JSON", str(file))
    file.unlink()
    with pytest.raises(UserError) as caught:
        prompts.read("held_out", "hpsv2:photo")
    one_line(caught, "held_out: expected", str(file), "found none")


# ---- errors of any file


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "json", "parquet", "prompts", ""])
@pytest.mark.parametrize("what", ["missing", "not UTF-8", "empty", "blank", "folder", "pipe"])
def test_read_errors_are_one_line_that_names_the_key(tmp_path: Path, what: str, suffix: str) -> None:
    path = (tmp_path / "list").with_suffix(f".{suffix}" if suffix else "")
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what != "missing":
        path.write_bytes({"not UTF-8": b"\xff\xfe\x00a", "blank": b"\n  \n"}.get(what, b""))
    with pytest.raises(UserError) as caught:
        prompts.read("held_out", str(path))
    one_line(caught, "held_out: expected", str(path))


@pytest.mark.parametrize("source", ["embedded:no-such-list", "~nobody/list.txt", "x" * 5000, "list.txt/below", "split:4", ""])
def test_sources_that_are_none(source: str) -> None:
    with pytest.raises(UserError) as caught:
        prompts.read("prompts", source)
    one_line(caught, "prompts: expected")


# ---- the order of training
