"""JSON, parquet and HPSv2 prompt files, against the packages that wrote them; sources that are
none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from support.prompt_checks import one_line

from branchgrpo.data import files as prompt_files
from branchgrpo.data import prompts
from branchgrpo.data import tables as prompt_tables
from branchgrpo.data.records import prompts_of
from branchgrpo.errors import UserError

# ---- JSON


RECORDS = [
    "null",
    '"a \\u732b"',
    '{"id": 1, "caption": "b"}',
    '{"caption": "no", "prompt": " c\\nd "}',
    '{"PROMPT": null, "Texts": "e", "caption": "no"}',
    '""',
    '{"prompt": "  "}',
    '{"prompt": null, "Captions": null}',
    '{"id": 2}',
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
    assert prompts_of(found) == [found[index].prompt for index in range(len(found))] == TEXTS


@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_json(tmp_path: Path, bom: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(f"{bom}[{','.join(RECORDS)}]", encoding="utf-8")
    assert prompts_of(prompts.read("prompts", str(path))) == TEXTS


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ('{"prompt": ', "not JSON"),
        ("plain text", "not JSON"),
        ('{"prompt": 3}', "a number"),
        ('{"prompt": "a\\u0000b"}', "a NUL"),
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
    one_line(
        caught,
        "prompts: expected a JSON string, or an object with prompt, text or caption",
        f"line 3 of {tmp_path / 'list.jsonl'}",
        reason,
    )
    (tmp_path / "list.json").write_text(f'["fine",\n\n{value}]')
    with pytest.raises(UserError) as caught:
        prompts.read("held_out", str(tmp_path / "list.json"))
    place = {"not JSON": "line 3", "nested too deeply": str(tmp_path)}.get(reason, "item 2")
    one_line(caught, "held_out: expected a JSON list", str(tmp_path / "list.json"), place, reason)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ('{"prompt": "a"}', "an object"),
        ('"a"', "a string"),
        ("[]", "found none"),
        ('[""]', "found none"),
    ],
)
def test_json_that_is_no_list_of_prompts(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(UserError) as caught:
        prompts.read("prompts", str(tmp_path / "list.json"))
    one_line(caught, "prompts: expected", str(tmp_path / "list.json"), reason)


# ---- parquet


def table(
    path: Path,
    kind: pyarrow.DataType | None = None,
    column: str = "caption",
    texts: Iterable[str | None] = (),
    rows: int = 3,
) -> list[str | None]:
    """Write a parquet file in row groups of `rows`."""
    found = list(texts) or [
        "one",
        None,
        " two ",
        "猫",
        "",
        " \t",
        "three",
        None,
        None,
        None,
        "four",
    ]
    parquet.write_table(
        pyarrow.table(
            {
                "image": range(len(found)),
                column: pyarrow.array(found, pyarrow.string()).cast(kind or pyarrow.string()),
            }
        ),
        path,
        rows,
    )
    return found


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.string(),
        pyarrow.large_string(),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    ],
    ids=str,
)
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_parquet(tmp_path: Path, kind: pyarrow.DataType, rows: int) -> None:
    path = tmp_path / "list.parquet"
    expected = [text for text in table(path, kind, rows=rows) if text and text.strip()]
    assert parquet.ParquetFile(path).num_row_groups == -(-11 // rows)
    found = prompts.read("prompts", str(path))
    assert prompts_of(found) == expected == [found[index - 5].prompt for index in range(5)]
    assert [found[index].prompt for index in (4, 0, 3, 1, 2)] == [
        expected[index] for index in (4, 0, 3, 1, 2)
    ]


def test_parquet_is_in_memory_a_batch_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_tables, "COPIED", 200)
    texts = [f"{number:07d} {'word ' * 100}" for number in range(10_000)]
    table(tmp_path / "list.parquet", texts=texts, rows=10_000)
    tracemalloc.start()
    try:
        found = prompts.read("prompts", str(tmp_path / "list.parquet"))
        assert [found[index].prompt for index in (9_999, 0, 200, 199)] == [
            texts[index] for index in (9_999, 0, 200, 199)
        ]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(map(len, texts)) > 5e6
    # of Python's own memory: 0.1 MB of offsets and of digests each, 200 texts thrice
    assert peak < 1e6


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
    parquet.write_table(
        pyarrow.table({"text": pyarrow.Array.from_buffers(pyarrow.string(), 2, raw.buffers())}),
        path,
    )
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
    code = (
        "import sys; from branchgrpo.data import prompts; prompts.read('prompts', "
        "'embedded:train'); print(*{'torch', 'pyarrow', 'hpsv2'} & set(sys.modules))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout.split()
        == []
    )


# ---- HPSv2's benchmark


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """A root folder of hpsv2 with its four files."""
    folder = tmp_path / "datasets" / "benchmark"
    folder.mkdir(parents=True)
    for number, style in enumerate(("photo", "anime", "concept-art", "paintings")):
        (folder / f"{style}.json").write_text(
            json.dumps([f"{style} {index}, of a café " for index in range(number + 2)])
        )
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
def test_hpsv2_benchmark_is_the_package_s(
    benchmark: Path, monkeypatch: pytest.MonkeyPatch, style: str, place: str
) -> None:
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
        (benchmark / "datasets" / "benchmark").rename(
            cache / "datasets--zhwang--HPDv2" / "snapshots" / "0123abc" / "benchmark"
        )
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    assert prompts_of(prompts.read("held_out", f"hpsv2:{style}")) == expected


def test_hpsv2_errors(benchmark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(benchmark / "hub"))
    monkeypatch.setenv("HPS_ROOT", str(benchmark))
    with pytest.raises(UserError) as caught:
        prompts.read("prompts", "hpsv2:manga")
    one_line(
        caught,
        "prompts: expected hpsv2:STYLE with STYLE one of anime, concept-art, paintings, "
        "photo, all, got hpsv2:manga",
    )
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


@pytest.mark.parametrize(
    "suffix",
    [
        "txt",
        "jsonl",
        "json",
        "parquet",
        "prompts",
        "",
        "csv",
        "tsv",
        "txt.gz",
        "jsonl.gz",
        "json.gz",
        "csv.gz",
    ],
)
@pytest.mark.parametrize("what", ["missing", "not UTF-8", "empty", "blank", "folder", "pipe"])
def test_read_errors_are_one_line_that_names_the_key(
    tmp_path: Path, what: str, suffix: str
) -> None:
    path = tmp_path / f"list.{suffix}".rstrip(".")
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what != "missing":
        path.write_bytes({"not UTF-8": b"\xff\xfe\x00a", "blank": b"\n  \n"}.get(what, b""))
    with pytest.raises(UserError) as caught:
        prompts.read("held_out", str(path))
    one_line(caught, "held_out: expected", str(path))


@pytest.mark.parametrize(
    "source",
    ["embedded:no-such-list", "~nobody/list.txt", "x" * 5000, "list.txt/below", "split:4", ""],
)
def test_sources_that_are_none(source: str) -> None:
    with pytest.raises(UserError) as caught:
        prompts.read("prompts", source)
    one_line(caught, "prompts: expected")


# ---- the order of training
