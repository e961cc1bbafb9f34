"""What checkpoints' folders are named, and who wrote them."""

from __future__ import annotations

import os
import re
import socket
import time
import zlib
from typing import NamedTuple

_NAME = re.compile(
    r"fence-([0-9]{4,12})-iteration-([0-9]{8,15})-([0-9a-f]{1,16})-([0-9a-f]{8})-([0-9]{1,9})"
)


class Name(NamedTuple):
    """What a folder's name says; sorts from old to new."""

    fence: int
    iteration: int
    time: int  # ns since 1970
    host: str
    pid: int

    @classmethod
    def new(cls, iteration: int, fence: int) -> Name:
        """One that no other writer has."""
        return cls(
            fence=fence,
            iteration=iteration,
            time=time.time_ns(),
            host=f"{zlib.crc32(socket.gethostname().encode()):08x}",
            pid=os.getpid(),
        )

    @classmethod
    def parse(cls, text: str) -> Name | None:
        """None: it is no checkpoint's."""
        found = _NAME.fullmatch(text)
        if not found:
            return None
        fence, iteration, time, host, pid = found.groups()
        return cls(
            fence=int(fence), iteration=int(iteration), time=int(time, 16), host=host, pid=int(pid)
        )

    def text(self) -> str:
        """The folder's."""
        writer = f"{self.time:x}-{self.host}-{self.pid}"
        return f"fence-{self.fence:04d}-iteration-{self.iteration:08d}-{writer}"

    def abandoned(self) -> bool:
        """Was it written on this machine, by a process that is dead?"""
        own = Name.new(0, 0)
        return self.host == own.host and not _alive(self.pid)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # someone else's
        return True
    return True
