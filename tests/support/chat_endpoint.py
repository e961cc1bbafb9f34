"""A chat endpoint on loopback that speaks OpenAI's protocol; tests tell what it answers."""

from __future__ import annotations

import base64
import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

Answer = Callable[[dict[str, Any]], "tuple[int, bytes]"]


def completion(text: str = "", likely: dict[str, float] | None = None, **more: Any) -> bytes:
    """A chat completion with this text, and these probabilities of its first token."""
    tokens = [{"token": token, "logprob": math.log(p)} for token, p in (likely or {}).items()]
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
        "logprobs": {"content": [{"token": "x", "logprob": 0.0, "top_logprobs": tokens}]}
        if likely
        else None,
    }
    choice["message"] |= more.pop("message", {})
    return json.dumps({"object": "chat.completion", "choices": [choice | more]}).encode()


def pictures(request: dict[str, Any]) -> list[np.ndarray]:
    """The pictures of a request, u8 [H, W, 3]."""
    found = []
    for part in request["messages"][-1]["content"]:
        if part["type"] == "image_url":
            data = base64.b64decode(part["image_url"]["url"].removeprefix("data:image/png;base64,"))
            found.append(np.asarray(Image.open(BytesIO(data))))
    return found


def texts(request: dict[str, Any]) -> list[str]:
    """Its texts."""
    content = request["messages"][-1]["content"]
    return [part["text"] for part in content if part["type"] == "text"]


class Endpoint:
    """What was asked of it."""

    def __init__(self, url: str):
        self.url = url
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []


@contextmanager
def endpoint(answer: Answer) -> Iterator[Endpoint]:
    """One that answers every request by `answer`: HTTP status and body."""
    made: Endpoint
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                made.requests.append(request)
                made.headers.append(dict(self.headers))
            assert self.path == "/v1/chat/completions"
            status, body = answer(request)
            with suppress(ConnectionError):  # it was not waited for
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    made = Endpoint(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
