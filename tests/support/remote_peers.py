"""Who talks in the tests of remote rewards: small scorers, the real server in a thread, and a
scripted server made by hand."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgpack
import numpy as np
import pytest

from branchgrpo.rewards.base import Resources, Scorer
from branchgrpo.rewards.http import client as remote
from branchgrpo.rewards.http import server
from branchgrpo.rewards.http.client import Remote, RemoteReward
from branchgrpo.rewards.http.protocol import MB
from branchgrpo.rewards.http.server import RewardServer
from branchgrpo.types import Sample

TOKEN = "s3cret-t0ken"
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 2, 8, 6, 3), np.uint8)
PROMPTS = ["a fox", "zwölf Boxkämpfer", "", "a fox", "水"]


class Plain(Scorer):
    """Mean brightness and the prompt's length; notes how it is called."""

    trains_on, reports = "bright", ("length", "bright")

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.threads: set[int] = set()
        self.busy = 0

    def score(self, pixels: np.ndarray, samples: list[Sample]) -> dict[str, np.ndarray]:
        self.busy += 1
        assert self.busy == 1, "two requests are scored at once"
        self.batches.append(len(samples))
        self.threads.add(threading.get_ident())
        found = {
            "bright": pixels.mean((1, 2, 3, 4), dtype=np.float32) / 7,
            "length": np.array([len(sample.prompt) / 3 for sample in samples]),
            "other": 0,
        }
        self.busy -= 1
        return found


class Blocked(Plain):
    """Waits in `score` until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.free = threading.Event(), threading.Event()

    def score(self, pixels: np.ndarray, samples: list[Sample]) -> dict[str, np.ndarray]:
        self.entered.set()
        assert self.free.wait(20)
        return super().score(pixels, samples)


class Failing(Plain):
    """Raises, or returns, what it was made with."""

    def __init__(self, outcome: Any):
        super().__init__()
        self.outcome = outcome

    def score(self, pixels: np.ndarray, samples: list[Sample]) -> dict[str, np.ndarray]:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@contextmanager
def running(served: Scorer | RewardServer, **settings: Any) -> Iterator[str]:
    """The real server in a thread; gives its url."""
    made = (
        served
        if isinstance(served, RewardServer)
        else RewardServer(served, "plain", **{"max_bytes": MB, **settings})
    )
    address: list[str] = []
    started, loop = threading.Event(), asyncio.new_event_loop()
    ended = asyncio.Event()

    async def main() -> None:
        runner = made.runner()
        await runner.setup()
        with server.bound("127.0.0.1", 0, False) as listener:
            accepting = await made.listen(runner, listener)
            await asyncio.sleep(0)
            address.append(f"http://127.0.0.1:{listener.getsockname()[1]}")
            started.set()
            await ended.wait()
            accepting.cancel()
            await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    assert started.wait(10)
    try:
        yield address[0]
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()
        made.thread.shutdown()


OFFER = {
    "version": 2,
    "reward": "stub",
    "reports": ["score"],
    "trains_on": "score",
    "max_bytes": MB,
    "grouped": False,
}


def scores(*values: float) -> bytes:
    return msgpack.packb(
        {
            "version": 2,
            "trains_on": "score",
            "scores": {"score": {"data": struct.pack(f"<{len(values)}f", *values)}},
        }
    )


class Stub:
    """A server that knows nothing of ours: answers scripted (status, body), the last one for ever;
    None hangs up."""

    def __init__(
        self, *script: tuple[int, bytes] | None, offer: Any = OFFER, offer_status: int = 200
    ):
        self.script = list(script)
        self.offer = offer
        self.offer_status = offer_status
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.release = threading.Event()
        self.silent = False

    def reply(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes] | None:
        if path == "/health":
            return self.offer_status, self.offer if isinstance(
                self.offer, bytes
            ) else msgpack.packb(self.offer)
        self.seen.append((path, headers, body))
        if self.silent:
            self.release.wait(20)
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    @contextmanager
    def serving(self, port: int = 0) -> Iterator[str]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.do_POST()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                found = stub.reply(self.path, dict(self.headers), body)
                if found is None:
                    self.close_connection = True
                    return
                self.send_response(found[0])
                self.send_header("Content-Length", str(len(found[1])))
                if found[0] == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()
                self.wfile.write(found[1])

            def log_message(self, *arguments: Any) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", port), Handler) as listener:
            thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
            thread.start()
            yield f"http://127.0.0.1:{listener.server_port}"
            self.release.set()
            listener.shutdown()
            thread.join()


@contextmanager
def trickling(where: str) -> Iterator[str]:
    """The url of a peer that answers one byte every 50 ms: of endless headers, or of a body of 1
    MB."""
    ended = threading.Event()
    head = b"HTTP/1.1 200 OK\r\n" + (
        b"Content-Length: 1000000\r\n\r\n" if where == "body" else b"X: "
    )

    def trickle(line: socket.socket) -> None:
        with line, suppress(OSError):
            line.sendall(head)
            while not ended.wait(0.05):
                line.sendall(b"x")

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=trickle, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def client(url: str, **options: Any) -> Remote:
    return RemoteReward(url=url, **options).build(Resources())


def plain(url: str, **options: Any) -> Remote:
    return client(url, **{"report": ("bright", "length"), **options})


def request_bytes(**changes: Any) -> bytes:
    """A valid request by hand, with changes."""
    message = {
        "version": 2,
        "pixels": {"shape": [1, 1, 2, 2, 3], "data": bytes(12)},
        "samples": [entry()],
        "rows": [0],
    }
    return msgpack.packb(changed(message, changes))


def entry(**changes: Any) -> dict[str, Any]:
    """A valid record of a request by hand, with changes."""
    record = {"prompt": "a", "id": "", "negative_prompt": "", "images": [], "metadata": "{}"}
    return changed(record, changes)


def changed(message: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """With changes; without what they make an ellipsis."""
    return {key: value for key, value in (message | changes).items() if value is not ...}


def one_line(text: str) -> bool:
    return "\n" not in text and len(text) < 600


def unwaited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between tries, which are not waited; and no proxy between here and loopback."""
    found: list[float] = []
    monkeypatch.setattr(remote, "sleep", found.append)
    monkeypatch.setenv("NO_PROXY", "*")
    return found
