"""Where ranks meet: addresses and interfaces."""

from __future__ import annotations

import os

import pytest

from actors.meeting import free_address, use_interface


def test_addresses() -> None:
    assert (
        free_address("127.0.0.1").startswith("tcp://127.0.0.1:")
        and int(free_address("127.0.0.1").rpartition(":")[2]) > 0
    )


def test_an_interface_that_the_environment_names_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    use_interface("tcp://127.0.0.1:9")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    use_interface("tcp://127.0.0.1:9")
    assert os.environ.pop("GLOO_SOCKET_IFNAME") == "lo"
