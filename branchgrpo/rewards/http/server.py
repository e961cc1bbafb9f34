"""A server for remote rewards: any reward of the table behind HTTP, see docs/remote-rewards.md.

Needs aiohttp, msgpack, numpy, pydantic and what the reward itself needs, and nothing of training.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import signal
import socket
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from ipaddress import ip_address
from typing import Any

from aiohttp import web

from branchgrpo.errors import UserError
from branchgrpo.rewards.base import Resources, RewardOptions, Scorer
from branchgrpo.rewards.http import limits, protocol
from branchgrpo.rewards.http.connections import IDLE_SECONDS, Connections
from branchgrpo.rewards.http.protocol import MB, Offer
from branchgrpo.rewards.http.values import ProtocolError

QUEUE = 16
"""Requests being read, waiting or scored; more are refused."""

HELD = 4
"""How many requests of the size limit all of these may hold together: that bounds the memory."""

READ_SECONDS = 300.0
"""Longest that a request may take to arrive: a client that vanished gives its place back."""

SLOWEST = 20.0, 1_000_000.0
"""Seconds for any request, and bytes a second from there on: a small one that trickles does not
hold its place for long."""

GRACE_SECONDS = 30.0
"""How long requests in hand may take once the server was asked to end."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RewardServer:
    """Answers requests with a scorer, one at a time, in a thread of its own."""

    def __init__(
        self,
        scorer: Scorer,
        reward: str,
        max_bytes: int,
        token: str = "",
        queue: int = QUEUE,
        connections: Connections | None = None,
        grouped: bool = False,
    ):
        self.connections = connections or Connections()
        self.scorer = scorer
        self.max_bytes = max_bytes
        self.queue = queue
        self.offer = Offer(reward, tuple(scorer.reports), scorer.trains_on, max_bytes, grouped)
        self.expected = f"Bearer {token}".encode() if token else b""
        self.thread = ThreadPoolExecutor(1, "scorer")
        self.held = self.held_bytes = 0  # requests in hand, and what they may take

    def runner(self) -> web.AppRunner:
        """The server, for a running loop. A client that hangs up gives its place back."""
        application = web.Application(middlewares=[self._guard], client_max_size=self.max_bytes)
        application.add_routes([web.get("/health", self._health), web.post("/score", self._score)])
        options: dict[str, Any] = {
            "access_log": None,
            "handler_cancellation": True,
            "auto_decompress": False,
            "shutdown_timeout": GRACE_SECONDS,
        }
        return web.AppRunner(
            application,
            keepalive_timeout=IDLE_SECONDS,
            max_headers=64,
            max_field_size=4096,
            **options,
        )

    async def listen(self, runner: web.AppRunner, listener: socket.socket) -> asyncio.Task[None]:
        """Accept connections from now on, until the task is cancelled; `runner` was set up."""
        assert runner.server is not None
        return asyncio.create_task(self.connections.accept(listener, runner.server))

    def answer(self, body: bytes | bytearray) -> tuple[int, bytes]:
        """HTTP status and body for the body of a request: 200, 400 for what is no request, 422 for
        what the scorer calls an error of the user, 500 for its other errors, with the trace on
        stderr."""
        try:
            pixels, samples = protocol.unpack_request(body, self.max_bytes)
        except ProtocolError as error:
            return 400, protocol.pack_error(str(error))
        try:
            limits.check(pixels.shape, samples, self.scorer.max_ratio)
            return 200, protocol.pack_scores(
                self.scorer.score(pixels, samples), self.offer, len(samples)
            )
        except UserError as error:
            return 422, protocol.pack_error(str(error))
        # whatever it is, the client is told, and the next request is served
        except Exception as error:
            traceback.print_exc()
            return 500, protocol.pack_error(f"{type(error).__name__}: {error}")

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Before anything is read: who asks. Afterwards: errors of HTTP in our own form."""
        given = request.headers.get("Authorization", "").encode(errors="surrogateescape")
        if self.expected and not hmac.compare_digest(given, self.expected):
            return _ended(
                _response(
                    401,
                    protocol.pack_error(
                        "expected the server's token as Authorization: Bearer TOKEN"
                    ),
                )
            )
        try:
            with self.connections.busy(request.protocol):
                return await handler(request)
        except web.HTTPRequestEntityTooLarge:
            return self._too_large()
        except web.HTTPException as error:
            return _response(
                error.status,
                protocol.pack_error(f"{error.reason}: expected GET /health or POST /score"),
            )

    async def _health(self, request: web.Request) -> web.Response:
        del request
        return _response(200, protocol.pack_offer(self.offer))

    async def _score(self, request: web.Request) -> web.Response:
        size = request.content_length
        if (size or 0) > self.max_bytes:
            return self._too_large()
        room = self.max_bytes if size is None else size
        if self.held >= self.queue or self.held_bytes + room > HELD * self.max_bytes:
            return _ended(
                _response(503, protocol.pack_error(f"busy: {self.held} requests are waiting"))
            )
        self.held, self.held_bytes = self.held + 1, self.held_bytes + room
        try:
            seconds = min(READ_SECONDS, SLOWEST[0] + room / SLOWEST[1])
            try:
                body = await asyncio.wait_for(self._body(request), seconds)
            except TimeoutError:
                return _ended(
                    _response(
                        408,
                        protocol.pack_error(
                            f"the request took longer than {seconds:.0f} s to arrive"
                        ),
                    )
                )
            return _response(
                *await asyncio.get_running_loop().run_in_executor(self.thread, self.answer, body)
            )
        finally:
            self.held, self.held_bytes = self.held - 1, self.held_bytes - room

    async def _body(self, request: web.Request) -> bytearray:
        """All of it, once: aiohttp's own reading would hold it twice."""
        body = bytearray()
        async for chunk in request.content.iter_any():
            body += chunk
            if len(body) > self.max_bytes:
                raise web.HTTPRequestEntityTooLarge(self.max_bytes)
        return body

    def _too_large(self) -> web.Response:
        return _response(
            413, protocol.pack_error(f"expected a request of at most {self.max_bytes} bytes")
        )


def _ended(response: web.Response) -> web.Response:
    """The connection ends with this answer."""
    response.force_close()
    return response


def _response(status: int, body: bytes) -> web.Response:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return web.Response(status=status, body=body, content_type=protocol.MEDIA_TYPE, headers=headers)


def serve(
    options: RewardOptions,
    host: str = "127.0.0.1",
    port: int = 8600,
    token_env: str = "",
    max_mb: int = 256,
    threads: int = 1,
    device: str = "cpu",
    ready: Callable[[str], None] = print,
) -> None:
    """Serve a reward until SIGTERM or SIGINT; requests in hand are answered first.

    `port` 0 takes a free one; `ready` is called with the url once requests are answered; `max_mb`
    bounds a request, in MB of 10⁶ bytes. Raises UserError for a host that others can reach without
    a token, an address that cannot be taken, and for what the reward itself refuses; nothing is
    loaded before the address is taken.
    """
    token = protocol.token_of("--token-env", token_env)
    if max_mb < 1 or threads < 1:
        raise UserError(
            f"serve-reward: expected --max-mb and --threads of at least 1, got {max_mb} and "
            f"{threads}"
        )
    options.check()
    with bound(host, port, bool(token)) as listener:
        # read by torch when the reward imports it, for every thread
        os.environ["OMP_NUM_THREADS"] = str(threads)
        scorer = options.build(Resources(threads=threads, device=device))
        server = RewardServer(scorer, options.title, max_mb * MB, token, grouped=options.grouped)
        asyncio.run(_until_asked(server, listener, ready))


def bound(host: str, port: int, guarded: bool) -> socket.socket:
    """A socket at this address, not yet listening. Raises UserError where it cannot be had, and for
    an address other than loopback unless the server is guarded by a token."""
    if not 0 <= port < 65_536:
        raise UserError(f"--port: expected 0 to 65535, got {port}")
    try:
        family, kind, protocol_number, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        if not guarded and not ip_address(address[0]).is_loopback:
            raise UserError(
                "--host: expected --token-env with an address that others can reach, got "
                f"{host!r} without a token"
            )
        with ExitStack() as stack:
            listener = stack.enter_context(socket.socket(family, kind, protocol_number))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            stack.pop_all()
    except (OSError, UnicodeError) as error:  # UnicodeError: no name of a host
        raise UserError(
            f"--host, --port: expected a free address of this machine, got {host}:{port}: {error}"
        ) from error
    return listener


async def _until_asked(
    server: RewardServer, listener: socket.socket, ready: Callable[[str], None]
) -> None:
    asked, loop = asyncio.Event(), asyncio.get_running_loop()

    def ask() -> None:
        asked.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)  # the second one ends the program at once

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ask)
    runner = server.runner()
    await runner.setup()
    try:
        accepting = await server.listen(runner, listener)
        await asyncio.sleep(0)  # it listens from here on
        host, port = listener.getsockname()[:2]
        ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
        stop = asyncio.create_task(asked.wait())
        await asyncio.wait((accepting, stop), return_when=asyncio.FIRST_COMPLETED)
        if accepting.done():
            accepting.result()  # raises what ended it
        accepting.cancel()
        listener.close()
    finally:
        await runner.cleanup()
        server.thread.shutdown(cancel_futures=True)
