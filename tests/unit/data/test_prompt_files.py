"""Text files of prompts, against Python's own reading: lines, errors, memory, changes."""

from __future__ import annotations

import io
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.prompt_checks import one_line
from support.records import record, records

from branchgrpo.data import files as prompt_files
from branchgrpo.data import prompts
from branchgrpo.data.records import prompts_of
from branchgrpo.errors import UserError
from branchgrpo.types import Sample


def universal(data: bytes) -> list[str]:
    """Python's own reading of lines, blank ones included."""
    return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline=None).read().split("\n")


def lines_of(path: Path, data: bytes) -> list[str]:
    """What `read` makes of a text file."""
    path.write_bytes(data)
    found = prompts.read("prompts", str(path))
    samples = [found[index] for index in range(len(found))]
    assert list(found) == samples == found[:]
    assert samples == [Sample(prompt=sample.prompt) for sample in samples]
    return prompts_of(samples)


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
    assert lines_of(tmp_path / "list.txt", data) == [
        line.strip() for line in universal(data) if line.strip()
    ]


@settings(max_examples=300, deadline=None)
@given(st.text("ab é猫 \t\r\n\u00a0😀", max_size=80), st.integers(1, 20), st.booleans())
def test_blocks_do_not_show(
    tmp_path_factory: pytest.TempPathFactory, text: str, block: int, bom: bool
) -> None:
    data = (b"\xef\xbb\xbf" if bom else b"") + text.encode()
    expected = list(dict.fromkeys(line.strip() for line in universal(data) if line.strip()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompt_files, "BLOCK", block)
        path = tmp_path_factory.mktemp("blocks") / "list.txt"
        if expected:
            assert lines_of(path, data) == expected
        else:
            with pytest.raises(UserError, match="found none"):
                lines_of(path, data)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["", " ", "a", "bé", "😀 c"]), st.sampled_from(["\n", "\r\n"])),
        max_size=12,
    ),
    st.integers(1, 20),
)
def test_invalid_utf8_is_found_at_the_start_with_its_line(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, str]], block: int
) -> None:
    path = tmp_path_factory.mktemp("bad") / "list.txt"
    path.write_bytes("".join(text + end for text, end in lines).encode() + b"x\xffy\nfine\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompt_files, "BLOCK", block)
        with pytest.raises(UserError) as caught:
            prompts.read("held_out", str(path))
    one_line(caught, "held_out: expected UTF-8 text", f"line {len(lines) + 1} of {path}")


@pytest.mark.parametrize(("length", "fits"), [(64, True), (65, False), (1000, False)])
def test_a_line_longer_than_any_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int, fits: bool
) -> None:
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
    path, count = tmp_path / "large.txt", 60_000
    with path.open("w") as file:
        file.writelines(f"{number:07d} {'word ' * 60}\n" for number in range(count))
    assert path.stat().st_size > 18e6
    tracemalloc.start()
    try:
        found = prompts.read("prompts", str(path))
        for iteration in range(3):
            for index in prompts.deal(len(found), 8, iteration, 0):
                assert found[index].prompt.startswith(f"{index:07d} word")
        train, held_out = prompts.split(found, 1000, 0)
        assert len(train) == count - 1000 and held_out[0] and train[0]
        assert sum(1 for _ in found) == count
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # 0.5 MB of offsets and of digests each, 0.2 MB for each shuffled order, a few blocks of 1 MB
    assert peak < 9e6


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
    assert prompts_of(prompts.read("prompts", str(path))) == ["three", "four", "five"]


def test_a_file_that_is_replaced_goes_on_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("one\ntwo\n")
    found = prompts.read("prompts", str(path))
    (tmp_path / "new").write_text("three\n")
    os.replace(tmp_path / "new", path)
    assert prompts_of(found) == prompts_of([found[0], found[1]]) == ["one", "two"]
    assert prompts_of(prompts.read("prompts", str(path))) == ["three"]


def test_a_file_is_closed_with_its_prompts(tmp_path: Path) -> None:
    def open_files() -> int:
        return sum(
            os.path.realpath(entry).startswith(str(tmp_path))
            for entry in Path("/proc/self/fd").iterdir()
        )

    for number in range(6):
        (tmp_path / f"{number}.txt").write_text("one\n")
        prompts.read("prompts", str(tmp_path / f"{number}.txt"))
    assert open_files() == 2  # those that are kept for the next to ask


def test_sequence(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a\nb\nc\nd\n")
    found = prompts.read("prompts", str(tmp_path / "list.txt"))
    a, b, c, d = records("abcd")
    assert (found[-1], found[np.int64(1)], found[1:3], found[::-2], found[:99]) == (
        d,
        b,
        [b, c],
        [d, b],
        [a, b, c, d],
    )
    assert c in found and record("e") not in found and found.index(c) == 2
    for index in (4, -5):
        with pytest.raises(IndexError):
            found[index]


def test_embedded_lists_share_no_prompt() -> None:
    train = prompts.read("prompts", "embedded:train")
    held_out = prompts.read("held_out", "embedded:heldout")
    assert train and held_out and not set(prompts_of(train)) & set(prompts_of(held_out))
