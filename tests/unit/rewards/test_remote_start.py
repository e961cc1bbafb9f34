"""What the remote reward refuses before any score: addresses, servers that are none or do not offer
what is wanted, tokens. Loopback only."""

from __future__ import annotations

import re
import socket
from typing import Any

import msgpack
import numpy as np
import pytest
import requests
from support.records import records
from support.remote_peers import (
    OFFER,
    PIXELS,
    PROMPTS,
    TOKEN,
    Plain,
    Stub,
    client,
    one_line,
    plain,
    request_bytes,
    running,
    unwaited,
)

from branchgrpo.errors import UserError
from branchgrpo.rewards.http.client import RemoteReward


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    return unwaited(monkeypatch)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8600",
        "ftp://host:1",
        "http://",
        "http://:80",
        "http://host:port",
        "http://host:0",
        "http://host:99999",
        "http://[::1",
        "http://h o:1",
        "http://host:1/?a=b",
        "http://host:1/#part",
        "http://host:1\n",
    ],
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(UserError, match=r"rewards\.remote\.url: expected http") as caught:
        RemoteReward(url=url).check()
    assert one_line(str(caught.value))


def test_urls_and_secrets_in_them() -> None:
    for url in (
        "http://127.0.0.1:8600",
        "https://rewards.example/hps",
        "http://[::1]:8600/",
        "http://host",
    ):
        RemoteReward(url=url).check()
    with pytest.raises(
        UserError, match=r"rewards\.remote\.url: expected no user or password"
    ) as caught:
        RemoteReward(url=f"http://me:{TOKEN}@host:1").check()
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "options", "line"),
    [
        (
            {"version": 1},
            {},
            "rewards.remote.url: .*protocol version 2 at URL, got health.version: expected "
            "2, got 1",
        ),
        (
            {"reports": "score"},
            {},
            "rewards.remote.url: .*health.reports: expected list, got 'score'",
        ),
        ({"reports": [1]}, {}, r"rewards.remote.url: .*health.reports\[0\]: expected str, got 1"),
        (
            {"max_bytes": 0},
            {},
            "rewards.remote.url: .*health.max_bytes: expected a size above 0, got 0",
        ),
        ({"max_bytes": True}, {}, "rewards.remote.url: .*health.max_bytes: expected int, got True"),
        (
            {},
            {"train_on": "beauty"},
            r"rewards.remote.train_on: expected scores of \['score'\], which URL offers, "
            r"got beauty",
        ),
        (
            {},
            {"report": ("score", "beauty")},
            r"rewards.remote.report: expected scores of \['score'\], which URL offers, got beauty",
        ),
        (
            {"trains_on": "beauty", "reports": ["exact"]},
            {},
            r"rewards.remote.report: expected scores of \['beauty', 'exact'\], which URL "
            r"offers, got score",
        ),
        ({"grouped": 1}, {}, "rewards.remote.url: .*health.grouped: expected bool, got 1"),
        (
            {"grouped": True},
            {},
            "rewards.remote.whole_groups: expected true, as URL has it, got false",
        ),
        (
            {},
            {"whole_groups": True},
            "rewards.remote.whole_groups: expected false, as URL has it, got true",
        ),
    ],
)
def test_servers_that_do_not_offer_what_is_wanted(
    changes: dict[str, Any], options: dict[str, Any], line: str
) -> None:
    with (
        Stub(offer=OFFER | changes).serving() as url,
        pytest.raises(UserError, match=line.replace("URL", re.escape(url))) as caught,
    ):
        client(url, **options)
    assert one_line(str(caught.value))


@pytest.mark.parametrize(
    ("status", "body", "line"),
    [
        (200, b"<html>hello", "health: expected msgpack"),
        (
            200,
            msgpack.packb(
                {
                    "version": 1,
                    "reward": "stub",
                    "reports": ["score"],
                    "trains_on": "score",
                    "max_bytes": 1000,
                }
            ),
            "health.version: expected 2, got 1",
        ),
        (404, b"<html>", "HTTP 404"),
        (503, msgpack.packb({"version": 2, "error": "later"}), "HTTP 503: later"),
        (302, b"", "HTTP 302"),
    ],
)
def test_what_is_no_reward_server(status: int, body: bytes, line: str, waits: list[float]) -> None:
    with (
        Stub(offer=body, offer_status=status).serving() as url,
        pytest.raises(UserError, match=rf"rewards.remote.url: expected .*{url}.*{line}"),
    ):
        client(url)
    assert not waits


def test_no_server() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(
            UserError,
            match=rf"rewards.remote.url: expected a reward server at {url}, got ConnectionError: "
            r".*refused",
        ) as caught:
            client(url)
    assert one_line(str(caught.value))


def test_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(**options: Any) -> str:
        with pytest.raises(UserError) as caught:
            plain(url, **options)
        assert one_line(str(caught.value)) and TOKEN not in str(caught.value)
        return str(caught.value)

    monkeypatch.setenv("RIGHT", TOKEN)
    monkeypatch.setenv("WRONG", TOKEN[:-1])
    monkeypatch.setenv("BROKEN", TOKEN + "\n")
    with running(Plain(), token=TOKEN) as url:
        far = plain(url, token_env="RIGHT")
        assert far.score(PIXELS, records(PROMPTS))["length"][0] == np.float32(5 / 3)
        assert refused().startswith(
            f"rewards.remote.token_env: expected {url} to say what it offers, got HTTP 401"
        )
        assert "HTTP 401" in refused(token_env="WRONG")
        assert refused(token_env="MISSING").startswith(
            "rewards.remote.token_env: expected the token in the environment variable MISSING"
        )
        assert "printable ASCII" in refused(token_env="BROKEN")
        far.token = "other"
        with pytest.raises(RuntimeError, match="HTTP 401"):
            far.score(PIXELS, records(PROMPTS))
        for header in (
            TOKEN,
            f"Basic {TOKEN}",
            f"Bearer {TOKEN} ",
            "Bearer ü".encode(),
            f"Bearer {TOKEN}x",
        ):
            found = requests.post(
                f"{url}/score", data=request_bytes(), headers={"Authorization": header}, timeout=10
            )
            # HTTP trims a header's value
            assert found.status_code == (200 if header == f"Bearer {TOKEN} " else 401)
