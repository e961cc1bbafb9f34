"""What a reward server says to those who speak no HTTP, ask too much, or give up."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from time import sleep
from typing import Any

import msgpack
import pytest
import requests
from support.remote_peers import (
    Blocked,
    Plain,
    one_line,
    request_bytes,
    running,
)

from branchgrpo.errors import UserError
from branchgrpo.rewards.http.client import RemoteReward
from branchgrpo.rewards.http.protocol import MB
from branchgrpo.rewards.http.server import RewardServer, serve


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


def test_what_http_itself_refuses() -> None:
    def ask(method: str, path: str, **more: Any) -> tuple[int, dict[str, Any]]:
        found = requests.request(method, url + path, timeout=10, **more)
        return found.status_code, msgpack.unpackb(found.content)

    with running(Plain()) as url:
        assert ask("GET", "/health") == (
            200,
            {
                "version": 2,
                "reward": "plain",
                "reports": ["length", "bright"],
                "trains_on": "bright",
                "max_bytes": MB,
                "grouped": False,
            },
        )
        assert (
            ask("GET", "/")[0] == 404
            and ask("GET", "/score")[0] == 405
            and ask("POST", "/health")[0] == 405
        )
        assert ask("POST", "/score", data=b"")[0] == 400
        # bodies are never unpacked
        assert (
            ask("POST", "/score", data=request_bytes(), headers={"Content-Encoding": "gzip"})[0]
            == 200
        )
        # no length was announced
        assert ask("POST", "/score", data=iter([bytes(600_000)] * 2))[0] == 413
        assert (
            ask("POST", "/score", data=bytes(MB))[0] == 400
            and ask("POST", "/score", data=bytes(MB + 1))[0] == 413
        )


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        # refused before anything of it is there
        (b"POST /score HTTP/1.1\r\nHost: a\r\nContent-Length: 1000001\r\n\r\n", 413),
        (b"POST /score HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST /score HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n", 400),
        (
            b"POST /score HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: "
            b"chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (b"\x00\xff\x16\x03\x01 garbage\r\n\r\n", 400),
    ],
)
def test_raw_bytes(sent: bytes, status: int) -> None:
    with running(Plain()) as url:
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
            line.sendall(sent)
            assert line.recv(100).split()[1] == str(status).encode()
        # hangs up in the middle
        with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
            line.sendall(b"POST /score HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf")
        assert requests.post(f"{url}/score", data=request_bytes(), timeout=10).status_code == 200


def test_more_requests_than_the_queue_holds_are_refused() -> None:
    scorer = Blocked()
    with running(scorer, queue=1) as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(requests.post, f"{url}/score", data=request_bytes(), timeout=20)
        assert scorer.entered.wait(10)
        second = requests.post(f"{url}/score", data=request_bytes(), timeout=10)
        assert second.status_code == 503 and "busy" in msgpack.unpackb(second.content)["error"]
        assert requests.get(f"{url}/health", timeout=10).status_code == 200  # while it scores
        scorer.free.set()
        assert first.result().status_code == 200
        assert requests.post(f"{url}/score", data=request_bytes(), timeout=10).status_code == 200


def test_a_client_that_gave_up_waiting_costs_no_scoring() -> None:
    scorer = Blocked()
    made = RewardServer(scorer, "plain", MB, queue=2)
    with running(made) as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(requests.post, f"{url}/score", data=request_bytes(), timeout=20)
        assert scorer.entered.wait(10)
        with pytest.raises(requests.ReadTimeout):
            requests.post(f"{url}/score", data=request_bytes(), timeout=0.2)
        for _ in range(1000):
            if made.held == 1:  # the server noticed
                break
            sleep(0.01)
        scorer.free.set()
        assert first.result().status_code == 200
        assert requests.post(f"{url}/score", data=request_bytes(), timeout=10).status_code == 200
    assert scorer.batches == [1, 1]


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::"])
def test_an_open_address_needs_a_token(host: str) -> None:
    options = RemoteReward(url="http://127.0.0.1:1")
    with pytest.raises(
        UserError, match="--host: expected --token-env with an address that others can reach"
    ) as caught:
        serve(options, host, 0)
    assert one_line(str(caught.value))


def test_addresses_and_limits_that_cannot_be() -> None:
    options = RemoteReward(url="http://127.0.0.1:1")  # never asked: the address is taken first
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for host, port in (
            ("127.0.0.1", taken.getsockname()[1]),
            ("127.0.0.1", 99_999),
            ("no such host", 0),
            ("127.0.0.1", -1),
            ("a..b", 0),
        ):
            with pytest.raises(
                UserError,
                match=r"--port: expected (a free address of this machine|0 to 65535), got",
            ) as caught:
                serve(options, host, port)
            assert one_line(str(caught.value))
    for key in ("max_mb", "threads"):
        with pytest.raises(UserError, match="at least 1"):
            serve(options, **{key: 0})
    with pytest.raises(
        UserError, match="--token-env: expected the token in the environment variable MISSING"
    ):
        serve(options, token_env="MISSING")
