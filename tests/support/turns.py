"""Turns of processes that run tests beside one another: what needs the machine for itself waits for
the others' tests to end, and they wait for it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class Turns:
    """One for each process; `door` and `room` are files or folders that are the same for all."""

    def __init__(self, door: Path, room: Path):
        # who waits at the door keeps others from entering, and so comes to his turn
        self.door, self.room = (os.open(path, os.O_RDONLY) for path in (door, room))
        self.alone = False

    def begin(self, alone: bool) -> None:
        """Wait for the turn of a test, unless it goes on from one that was alone."""
        if alone and self.alone:
            return
        fcntl.flock(self.door, fcntl.LOCK_EX)
        fcntl.flock(self.room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        self.alone = alone
        fcntl.flock(self.door, fcntl.LOCK_UN)

    def end(self, goes_on: bool) -> None:
        """Give it back, unless the next test is alone too, and has fixtures of this one."""
        if not (self.alone and goes_on):
            fcntl.flock(self.room, fcntl.LOCK_UN)
            self.alone = False
