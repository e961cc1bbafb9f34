"""Which Ray is meant and how it is reached: addresses, tokens, the boards of this machine."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from support.refusals import refusal

from cluster import address as address_module
from cluster.connect import boards, connect
from cluster.session import Session

# Reaching Ray


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as ping:
        ping.bind(("127.0.0.1", 0))
        return int(ping.getsockname()[1])


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USE_TLS"):
        monkeypatch.setenv(name, "")  # not delenv, which would not undo what authenticate sets
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("cluster.ray_private.read_environment", lambda: None)


Serve = Callable[[str], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Something at an address that answers the question for health, and wants this token if it is
    not empty."""
    servers = []

    def serving(token: str) -> str:
        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            if (
                token
                and dict(context.invocation_metadata()).get("authorization") != f"Bearer {token}"
            ):
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")
            return b""

        server = grpc.server(ThreadPoolExecutor(1))
        handler = grpc.unary_unary_rpc_method_handler(answer)
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "ray.rpc.NodeInfoGcsService", {"CheckAlive": handler}
                ),
            )
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield serving
    for server in servers:
        server.stop(None)


def test_an_open_ray_is_greeted_without_a_token(serve: Serve) -> None:
    address = serve("")
    address_module.authenticate(address)
    assert not address_module.os.environ["RAY_AUTH_MODE"] and address_module.lets_all_in(address)


def test_a_ray_that_asks_for_a_token_gets_the_one_in_the_file(serve: Serve, tmp_path: Path) -> None:
    address = serve("secret")
    assert not address_module.lets_all_in(address)
    assert "no token" in refusal(address_module.authenticate, address)
    (tmp_path / "token").write_text("secret\n")
    address_module.authenticate(address)
    assert address_module.os.environ["RAY_AUTH_MODE"] == "token"
    address_module.authenticate(address)  # now with the mode that is set


def test_a_wrong_token_is_named_and_never_shown(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "guess")
    line = refusal(address_module.authenticate, serve("secret"))
    assert "asks for a token" in line and "another token" in line and "guess" not in line


def test_a_disabled_mode_is_a_persons_choice(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert "RAY_AUTH_MODE=disabled" in refusal(address_module.authenticate, serve("secret"))


def test_no_ray_at_an_address(closed_port: int) -> None:
    assert f"127.0.0.1:{closed_port}" in refusal(connect, f"127.0.0.1:{closed_port}")
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    assert "something else answers" in refusal(connect, f"127.0.0.1:{port}")
    server.stop(None)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("local", "got local"),
        ("http://head:8265", "ray job submit"),
        ("ray://head:10001", "HOST:PORT"),
        ("head", "HOST:PORT"),
    ],
)
def test_addresses_of_another_kind(address: str, words: str) -> None:
    assert words in refusal(connect, address)


def test_ray_address_counts_where_none_is_given(
    monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    assert all(str(closed_port) in refusal(connect, address) for address in ("", "auto"))


@pytest.mark.parametrize(
    ("found", "words"),
    [([], "none runs"), (["10.0.0.2:1", "10.0.0.1:1"], "10.0.0.1:1, 10.0.0.2:1")],
)
def test_without_an_address_the_only_ray_on_this_machine(
    monkeypatch: pytest.MonkeyPatch, found: list[str], words: str
) -> None:
    monkeypatch.setattr("cluster.ray_private.addresses_here", lambda: sorted(found))
    line = refusal(connect, "")
    assert "expected RAY_ADDRESS or --address" in line and words in line


def test_boards_of_all_rays_on_this_machine_that_let_us_in(
    monkeypatch: pytest.MonkeyPatch, serve: Serve, closed_port: int
) -> None:
    open_one = serve("")
    locked = serve("secret")
    gone = f"127.0.0.1:{closed_port}"
    monkeypatch.setattr("cluster.ray_private.gcs_client", lambda address: address)
    monkeypatch.setattr("cluster.ray_private.addresses_here", lambda: [open_one, locked, gone])
    assert [board.address for board in boards("")] == [open_one]
    assert "no token" in refusal(boards, locked) and "nothing answers" in refusal(boards, gone)


def test_how_to_get_the_token_is_said_where_the_dashboard_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = Session("127.0.0.1:6379", "http://127.0.0.1:8265", True)
    assert (
        made.notes()[1] == "Ray dashboard: http://127.0.0.1:8265"
        and "127.0.0.1:6379" in made.notes()[0]
    )
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert (
        made.notes()[1]
        == f"Ray dashboard: http://127.0.0.1:8265, which asks for a token: cat {tmp_path / 'token'}"
    )
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert (
        made.notes()[1].endswith("asks for a token: that in RAY_AUTH_TOKEN")
        and len(Session("127.0.0.1:1", "", True).notes()) == 1
    )
