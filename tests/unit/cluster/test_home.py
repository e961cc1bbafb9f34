"""A home directory that cannot be written: Ray would end in a trace when it keeps its token
there."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray._private.authentication.authentication_token_setup import _get_default_token_path

from cluster import session
from cluster.address import require_home
from cluster.errors import PlacementError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Behind a regular file: nobody can make it, whoever asks."""
    (tmp_path / "file").write_text("")
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "file" / "home"))
    return tmp_path


def test_it_is_one_line_before_ray_starts(home: Path) -> None:
    assert _get_default_token_path() == Path.home() / ".ray" / "auth_token"  # where Ray writes
    with pytest.raises(
        PlacementError,
        match=rf"^home: expected a folder that can be written, [^\n]*, got {home}/file: Not a "
        r"directory; [^\n]*$",
    ):
        session.start("local", 80, False)


def test_it_is_not_needed_where_there_is_a_token_or_none_is_asked_for(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "token").write_text("5eed" * 16)
    for name, value in (
        ("RAY_AUTH_TOKEN", "5eed" * 16),
        ("RAY_AUTH_TOKEN_PATH", str(home / "token")),
        ("RAY_AUTH_MODE", "disabled"),
        ("HOME", str(home)),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            require_home()
    assert not (home / ".ray").exists()
