"""Connections of the reward server: a bounded number, each with a deadline, so that nobody without
a token can keep others out.

aiohttp looks at a token once all headers are there. Until then, and between requests, a connection
is idle: it ends by its deadline, and makes room for a new one when all places are taken.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiohttp import web

MOST = 128
"""Connections at the same time; fewer where the process may not open so many files."""

SPARE = 4
"""Connections fewer than there were when files ran out."""

HEADER_SECONDS = 10.0
"""From the connection to the end of the first request's headers."""

IDLE_SECONDS = 75.0
"""From an answer to the end of the next request's headers."""

TELL_SECONDS = 60.0
"""Between two lines about connections that could not be accepted."""

log = logging.getLogger(__name__)


def places() -> int:
    """How many connections this process can hold: MOST, or half of the files that it may still
    open."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        return MOST
    used = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 32
    return max(1, min(MOST, (soft - used) // 2))


class Connections:
    """Accepts connections for an aiohttp server and ends those that are idle too long."""

    def __init__(
        self,
        most: int = 0,
        header_seconds: float = HEADER_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
    ):
        self.most = most or places()
        self.header_seconds = header_seconds
        self.idle_seconds = idle_seconds
        # protocol → when it ends; the one that came first is first
        self.idle: dict[Any, float] = {}
        self.open: dict[Any, asyncio.BaseTransport] = {}
        self.told = float("-inf")

    async def accept(self, listener: socket.socket, server: web.Server) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        listener.listen(MOST)
        listener.setblocking(False)
        sweeper = asyncio.create_task(self._sweep())
        try:
            while True:
                try:
                    found, _ = await loop.sock_accept(listener)
                except ConnectionError:  # a client that is gone already
                    continue
                except OSError as error:  # no files left: neither a busy loop nor a line for each
                    self._tell(error)
                    # so many had room, and no more
                    self.most = max(1, min(self.most, len(self.open)) - SPARE)
                    while len(self.open) > self.most and self._make_room():
                        pass
                    await asyncio.sleep(0.1)
                    continue
                await self._begin(loop, found, server)
        finally:
            sweeper.cancel()

    async def _begin(
        self, loop: asyncio.AbstractEventLoop, found: socket.socket, server: web.Server
    ) -> None:
        self._forget_closed()
        if len(self.open) >= self.most and not self._make_room():
            found.close()  # all are answered just now: try again
            return
        try:
            transport, protocol = await loop.connect_accepted_socket(server, found)
        except OSError as error:
            found.close()
            self._tell(error)
            return
        self.open[protocol] = transport
        self.idle[protocol] = loop.time() + self.header_seconds

    @contextmanager
    def busy(self, protocol: Any) -> Iterator[None]:
        """Its request is read and answered: it has other deadlines."""
        self.idle.pop(protocol, None)
        try:
            yield
        finally:
            if protocol in self.open:
                self.idle[protocol] = asyncio.get_running_loop().time() + self.idle_seconds

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(1.0, self.header_seconds / 4))
            self._forget_closed()
            for protocol in [protocol for protocol, end in self.idle.items() if end <= loop.time()]:
                self._end(protocol)

    def _forget_closed(self) -> None:
        for protocol in [
            protocol for protocol, transport in self.open.items() if transport.is_closing()
        ]:
            del self.open[protocol]
            self.idle.pop(protocol, None)

    def _make_room(self) -> bool:
        """End the idle connection that has waited longest; False where there is none."""
        oldest = next(iter(self.idle), None)
        if oldest is not None:
            self._end(oldest)
        return oldest is not None

    def _end(self, protocol: Any) -> None:
        self.idle.pop(protocol, None)
        transport = self.open.pop(protocol, None)
        if isinstance(transport, asyncio.WriteTransport):
            with suppress(OSError):
                transport.abort()

    def _tell(self, error: OSError) -> None:
        now = asyncio.get_running_loop().time()
        if now - self.told >= TELL_SECONDS:
            self.told = now
            log.warning(
                "cannot accept a connection: %s (%d are open); said once a minute",
                error.strerror or error,
                len(self.open),
            )
