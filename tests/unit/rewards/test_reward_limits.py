"""What the reward server bears: half-open connections, slow bodies, and right requests that would
take much memory. Loopback only."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from time import monotonic, sleep

import msgpack
import numpy as np
import pytest
import requests
from support.records import records, request_of
from support.remote_peers import (
    PIXELS,
    PROMPTS,
    TOKEN,
    Blocked,
    Plain,
    client,
    one_line,
    plain,
    request_bytes,
    running,
)
from support.small_trees import quickstart

from actors.reward import RewardWorker
from branchgrpo.errors import UserError
from branchgrpo.rewards import ocr
from branchgrpo.rewards.base import Resources
from branchgrpo.rewards.http import limits, server
from branchgrpo.rewards.http.connections import Connections
from branchgrpo.rewards.http.protocol import MB, pack_request
from branchgrpo.rewards.http.server import RewardServer
from branchgrpo.types import LeafMedia, Subtree, TreeKey

ROOT = Path(__file__).resolve().parents[3]
HALF = b"POST /score HTTP/1.1\r\nHost: a\r\nX-"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


# Connections

CROWDED = """
import resource
from functools import partial
import branchgrpo.rewards.http.server as server
from branchgrpo.rewards.base import RewardOptions, Scorer

resource.setrlimit(resource.RLIMIT_NOFILE, (SOFT, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
server.Connections = partial(server.Connections, MOST, header_seconds=1.5)

class Mean(Scorer):
    def score(self, pixels, samples):
        return {"score": pixels.mean((1, 2, 3, 4))}

class Options(RewardOptions):
    def build(self, resources):
        return Mean()

options, ready = Options(label="mean"), lambda url: print(url, flush=True)
server.serve(options, port=0, token_env="REWARD_TOKEN", max_mb=1, ready=ready)
"""


@pytest.mark.waits
@pytest.mark.parametrize(("soft", "most"), [(256, 0), (64, 1000)], ids=["bounded", "out of files"])
def test_half_open_connections_keep_nobody_out(
    soft: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 of them, to a server that may open 256 files; and one whose bound is beyond its files, as
    when the reward takes them all."""
    monkeypatch.setenv("REWARD_TOKEN", TOKEN)
    program = CROWDED.replace("SOFT", str(soft)).replace("MOST", str(most))
    with ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", program],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ,
            )
        )
        stack.callback(process.kill)
        assert process.stdout
        url = process.stdout.readline().strip()
        port, lines = int(url.rpartition(":")[2]), []
        for _ in range(300):
            lines.append(
                stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            )
            lines[-1].sendall(HALF)
        begun = monotonic()
        far = client(url, token_env="REWARD_TOKEN", timeout_seconds=15.0, retries=0)
        assert np.array_equal(
            far.score(PIXELS, records(PROMPTS))["score"],
            PIXELS.mean((1, 2, 3, 4)).astype(np.float32),
        )
        assert monotonic() - begun < 10
        for line in lines:  # each is ended: by its deadline, or to make room
            try:
                assert line.recv(1) == b""
            except ConnectionResetError:
                pass
        assert monotonic() - begun < 20
        process.terminate()
        _, told = process.communicate(timeout=20)
    assert process.returncode == 0 and len(told.splitlines()) <= 2, told


def test_idle_connections_end_and_their_clients_do_not_notice() -> None:
    made = RewardServer(
        Plain(), "plain", MB, connections=Connections(8, header_seconds=1.0, idle_seconds=0.2)
    )
    with running(made) as url:
        far = plain(url, retries=0)
        first = far.score(PIXELS, records(PROMPTS))
        begun = monotonic()
        while made.connections.open and monotonic() - begun < 10:
            sleep(0.05)
        assert not made.connections.open and not made.connections.idle
        assert np.array_equal(far.score(PIXELS, records(PROMPTS))["bright"], first["bright"])


def test_a_request_in_hand_is_not_ended_for_others() -> None:
    scorer = Blocked()
    made = RewardServer(
        scorer, "plain", MB, connections=Connections(3, header_seconds=0.2, idle_seconds=0.2)
    )
    with running(made) as url, ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        first = pool.submit(requests.post, f"{url}/score", data=request_bytes(), timeout=20)
        assert scorer.entered.wait(10)
        for _ in range(12):
            line = stack.enter_context(
                socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10)
            )
            line.sendall(HALF)
        assert requests.get(f"{url}/health", timeout=10).status_code == 200
        sleep(0.6)  # longer than any deadline of idle ones
        assert len(made.connections.open) <= 3
        scorer.free.set()
        assert first.result().status_code == 200


def test_a_body_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SLOWEST", (0.3, 1e6))
    made = RewardServer(Plain(), "plain", MB)
    with (
        running(made) as url,
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10) as line,
    ):
        line.sendall(b"POST /score HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nhalf")
        assert line.recv(100).split()[1] == b"408" and made.held == made.held_bytes == 0


def test_requests_in_hand_are_bounded_in_bytes() -> None:
    """Those that say no length count as the longest: four are held, the fifth is told to come
    again."""
    scorer = Blocked()
    made = RewardServer(scorer, "plain", MB)
    with running(made) as url, ThreadPoolExecutor(4) as pool:
        held = [
            pool.submit(requests.post, f"{url}/score", data=iter([request_bytes()]), timeout=20)
            for _ in range(4)
        ]
        begun = monotonic()
        while made.held < 4 and monotonic() - begun < 10:
            sleep(0.01)
        assert (
            requests.post(f"{url}/score", data=iter([request_bytes()]), timeout=10).status_code
            == 503
        )
        scorer.free.set()
        assert [one.result().status_code for one in held] == [200] * 4
    assert made.held == made.held_bytes == 0


# Pictures and prompts


@pytest.mark.parametrize(
    ("shape", "prompt", "line"),
    [
        (
            (1, 1, 1, 300_000, 3),
            "a",
            "longer side is at most 32 times the shorter one, got 1 × 300000",
        ),
        ((1, 1, 33, 1, 3), "a", "longer side is at most 32 times the shorter one, got 33 × 1"),
        ((1, 1, 6000, 6000, 3), "a", "at most 33,554,432 pixels, got 6000 × 6000"),
        ((1, 1, 1, 1, 3), "a" * 8193, "prompts of at most 8,192 characters, got 8,193"),
    ],
)
def test_right_requests_that_no_scorer_should_see(
    shape: tuple[int, ...], prompt: str, line: str
) -> None:
    scorer = Plain()
    made = RewardServer(scorer, "plain", 200 * MB)
    status, body = made.answer(pack_request(np.zeros(shape, np.uint8), records([prompt])))
    error = msgpack.unpackb(body)["error"]
    assert status == 422 and line in error and one_line(error) and not scorer.batches


def test_training_refuses_them_too() -> None:
    """In one line, before a network sees them."""
    worker = RewardWorker(quickstart({}), (0,), 0)
    worker.ready()
    subtree = Subtree(TreeKey("test", 0, 0, 0), 0, 0)
    with pytest.raises(
        UserError, match="longer side is at most 32 times the shorter one, got 8 × 2000"
    ):
        worker.score(
            request_of(("the number 12 in red on white",)),
            LeafMedia(np.zeros((1, 1, 8, 2000, 3), np.uint8), (subtree,)),
        )


def test_batches() -> None:
    assert list(limits.batches(5, 2, 100)) == [slice(0, 2), slice(2, 4), slice(4, 6)]
    assert list(limits.batches(64, 64, 512 * 512)) == [slice(0, 64)]
    assert list(limits.batches(3, 64, limits.BATCH_PIXELS // 2)) == [slice(0, 2), slice(2, 4)]
    assert list(limits.batches(2, 64, limits.MAX_PIXELS)) == [slice(0, 1), slice(1, 2)]


def test_wide_lines_are_read_in_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same scores, with at most so many columns at once."""
    scorer = ocr.OcrReward(fold=True).build(Resources())
    pixels = np.random.default_rng(0).integers(0, 256, (5, 1, 16, 64, 3), np.uint8)
    prompts = ['"ab"'] * 5
    widths: list[int] = []
    whole, read = scorer.score(pixels, records(prompts)), scorer._read
    monkeypatch.setattr(ocr, "COLUMNS", 400)  # a line here is 192 wide
    monkeypatch.setattr(
        scorer, "_read", lambda pictures: (widths.append(len(pictures) * 192), read(pictures))[1]
    )
    parts = scorer.score(pixels, records(prompts))
    assert widths == [384, 384, 192]
    assert parts.keys() == whole.keys() and all(
        np.allclose(parts[name], whole[name], atol=1e-5) for name in whole
    )
