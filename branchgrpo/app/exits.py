"""How a command ends: its exit code, and what it says where it failed."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable

from branchgrpo.config import secrets
from branchgrpo.errors import GateError, StaleFence, UserError

UNREAD = 141
"""Exit code of a command whose output nobody reads any more, as in `branchgrpo config | head`:
128 + SIGPIPE, as other programs have it."""


def exit_code(command: Callable[[], int]) -> int:
    """Of a command: its own (0 done, 1 for what doctor finds); 1 internal failure (with its trace),
    2 bad input or missing resources (a line for each mistake), 130 interrupted."""
    try:
        try:
            return command()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except (UserError, GateError, StaleFence) as error:
        say(error)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        if not _unread():
            raise
        # the interpreter flushes once more as it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    except Exception as error:
        # named, not imported: cluster needs Ray, which `config` must not load
        if type(error).__name__ != "PlacementError":
            raise
        say(error)
        return 2


def say(error: Exception) -> None:
    """A line on stderr for each line of the error."""
    for line in str(error).splitlines() or [type(error).__name__]:
        print(f"error: {secrets.masked_text(line)}", file=sys.stderr)


def _unread() -> bool:
    """Is stdout a pipe that nobody reads any more?"""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):  # no file at all
        return False
