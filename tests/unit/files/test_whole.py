"""Files that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from branchgrpo.files.whole import write_whole, written_aside


def test_the_new_file_is_seen_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "ä.json"
    write_whole(path, "old\n")
    with written_aside(path) as partial:
        partial.write_bytes(b"ne")
        assert path.read_text(encoding="utf-8") == "old\n"
        partial.write_bytes(b"new\n")
    assert path.read_bytes() == b"new\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_what_was_there_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    write_whole(path, "old\n")
    with pytest.raises(KeyboardInterrupt), written_aside(path) as partial:
        partial.write_bytes(b"ne")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old\n" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError, match=r"nowhere"):
        write_whole(tmp_path / "nowhere" / "one.json", "text")
    with pytest.raises(FileNotFoundError), written_aside(path):
        pass  # nothing was written
    assert path.read_bytes() == b"old\n"
