"""What tests of prompt lists ask of errors."""

from __future__ import annotations

import pytest

from branchgrpo.errors import UserError


def one_line(caught: pytest.ExceptionInfo[UserError], *parts: str) -> None:
    """The message is one line with these parts."""
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text
